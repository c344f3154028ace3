"""What mixes the tokens of a block, one file per mechanism; `sizes` holds their facts."""
