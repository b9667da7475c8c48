"""What a target can't run: rules on plans and graphs, proofs by its compiler."""
