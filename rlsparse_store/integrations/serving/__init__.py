"""What engines that serve deltas have in common. It imports no engine."""
