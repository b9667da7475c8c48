"""Files without torch: staged folders, locks on outputs, atomic writes, the cache, disk errors."""
