"""What every trained detector is: the contract, its scores, its decision, and the one place each is computed."""
