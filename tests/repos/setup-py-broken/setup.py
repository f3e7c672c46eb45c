raise SystemExit("this project cannot be built")
