# A container with multibox, for a CPU or an NVIDIA GPU. `make release` puts the wheel into dist/ first.
#
#   docker build --tag multibox .
#   docker build --tag multibox:cuda --build-arg TORCH_BUILD=cu130 .
#
# docs/support.md shows how to run it. It needs the network while it is built, and not afterwards.
ARG PYTHON=3.13
FROM python:${PYTHON}-slim

# The build of PyTorch: cpu, or the CUDA version as PyTorch's index names it, such as cu130.
ARG TORCH_BUILD=cpu
# Optional parts of multibox.
ARG EXTRAS=onnx,parquet,pretrained,serve,video

WORKDIR /tmp/build
COPY constraints.txt dist/*.whl ./
# PyTorch alone from its own index. Its dependencies and everything else come from the default one.
RUN pip install --no-cache-dir --no-deps --constraint constraints.txt \
        --index-url "https://download.pytorch.org/whl/${TORCH_BUILD}" torch
RUN pip install --no-cache-dir --constraint constraints.txt "$(echo ./*.whl)[${EXTRAS}]" \
    && rm -r /tmp/build

# Any other user works as well: `docker run --user "$(id -u):$(id -g)"` lets files belong to you.
RUN useradd --create-home --uid 1000 multibox
USER 1000
WORKDIR /project
ENV MPLCONFIGDIR=/tmp/matplotlib
ENTRYPOINT ["multibox"]
CMD ["--help"]
