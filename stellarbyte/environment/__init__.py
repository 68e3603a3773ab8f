"""What StellarByte runs on: `stellarbyte env` tells it, `stellarbyte doctor` says what is wrong with it."""
