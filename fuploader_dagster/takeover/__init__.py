"""Taking over what FUploader left behind. Only the command line imports this."""
