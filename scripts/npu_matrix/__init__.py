"""What Qualcomm's compiler takes, refuses and computes wrong: small graphs, asked one by one."""
