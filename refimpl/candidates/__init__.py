"""What other programs write, as a candidate: files by their content, arrays by names."""
