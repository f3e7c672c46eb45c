file.create("made-by-install-R")
