"""ncnn as an engine: its files, its session, its times."""
