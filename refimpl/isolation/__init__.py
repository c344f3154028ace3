"""Libraries in processes of their own: what bent input does to them does not reach ours."""
