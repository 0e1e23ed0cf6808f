"""One file per architecture: `FAMILY`, its table of axes. The file's name is the model_type of config.json."""
