# docker build -t irtool . && docker run --rm irtool
FROM python:3.11-slim
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends make && rm -rf /var/lib/apt/lists/*
WORKDIR /irtool
# pip's own copies of what it downloads would stay in the image.
ENV PIP_NO_CACHE_DIR=1
# What the installation reads comes first, so that a change of code does not install torch again.
COPY pyproject.toml constraints.txt README.md LICENSE Makefile ./
COPY irtool irtool
COPY passes passes
COPY models models
RUN make setup
COPY . .
CMD ["make", "demo"]
