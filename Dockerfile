# The console command on a plain Debian. On a CPU:
#   docker build -t idmm-fast .
#   docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" idmm-fast pretrain --config own --data my_images --out runs/mine
# With a GPU (its driver and NVIDIA's container toolkit are the host's):
#   docker build --build-arg TORCH_INDEX= -t idmm-fast:cuda .
#   docker run --rm --gpus all --user "$(id -u):$(id -g)" -v "$PWD:/work" idmm-fast:cuda pretrain ...
FROM debian:bookworm-slim

# Where torch comes from; empty: PyPI, whose torch has CUDA.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# Extras of pyproject.toml, separated by commas.
ARG EXTRAS=hf,onnx

WORKDIR /opt/idmm_fast
COPY . .

# Caches for any user, also one without a home or a name: the kernels that `make setup` compiles, models of the hub.
ENV IDMM_FAST_CACHE=/cache NUMBA_CACHE_DIR=/cache/kernels MPLCONFIGDIR=/cache/matplotlib HF_HOME=/cache/huggingface

# `make setup` installs the other Debian packages too: a compiler, which torch.compile needs as well, and what FFCV links.
RUN mkdir -m 1777 /cache && apt-get update && apt-get install -y --no-install-recommends make python3 \
    && make setup TORCH_INDEX="$TORCH_INDEX" EXTRAS="$EXTRAS" \
    && chmod -R a+rwX /cache && rm -rf /root/.cache /var/lib/apt/lists/*

WORKDIR /work
ENTRYPOINT ["/opt/idmm_fast/.venv/bin/idmm-fast"]
CMD ["--help"]
