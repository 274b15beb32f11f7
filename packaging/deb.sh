#!/usr/bin/env bash
# The Debian package, from this checkout and .build/wheelhouse, without a network. Prints the package's path.
#
#   packaging/deb.sh [FOLDER]              where it is built; default: .build/deb
#   CUDA=FOLDER packaging/deb.sh [FOLDER]  also llmd-cuda, of what packaging/build_cuda.sh made; its path is printed next
#   TORCH=FOLDER packaging/deb.sh [FOLDER] also llmd-torch, of what packaging/torch_house.sh fetched; and its path
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

FOLDER=${1:-$PWD/.build/deb}
for tool in dpkg-buildpackage dh; do
    command -v "$tool" >/dev/null || { echo "deb: apt install dpkg-dev debhelper" >&2 && exit 1; }
done
[[ -d .build/wheelhouse/built ]] || { echo "deb: make wheelhouse comes first" >&2 && exit 1; }
version=$(sed -n '1s/.*(\(.*\)).*/\1/p' debian/changelog)
rm -rf "$FOLDER"
mkdir -p "$FOLDER/llmd-$version"
git ls-files -z --cached --others --exclude-standard | tar --null --files-from=- -cf - | tar -xf - -C "$FOLDER/llmd-$version"
cp -r .build/wheelhouse "$FOLDER/llmd-$version/"
profiles=()
if [[ ${CUDA:-} ]]; then
    mkdir "$FOLDER/llmd-$version/wheelhouse/cuda"
    cp "$CUDA"/libggml-cuda.so "$CUDA"/architectures "$CUDA"/wheels/nvidia_{cuda_runtime,cublas,nccl}*.whl "$FOLDER/llmd-$version/wheelhouse/cuda/"
    profiles=(pkg.llmd.cuda)
fi
if [[ ${TORCH:-} ]]; then
    cp -r "$TORCH" "$FOLDER/llmd-$version/wheelhouse/torch"
    profiles+=(pkg.llmd.torch)
fi
# our own wheel, built without a network from what is staged
(
    cd "$FOLDER/llmd-$version"
    SOURCE_DATE_EPOCH=$(date -u -d "$(dpkg-parsechangelog -S Date)" +%s)
    export SOURCE_DATE_EPOCH
    export CFLAGS="-g0 -ffile-prefix-map=$PWD=."
    "$OLDPWD/.venv/bin/python" -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation \
        --no-index --wheel-dir wheelhouse/built . >&2
    rm -rf build ./*.egg-info
    # a network that is not there cannot be used by mistake
    isolated=()
    unshare --net true 2>/dev/null && isolated=(unshare --net)
    "${isolated[@]}" dpkg-buildpackage --build=binary --no-sign --no-check-builddeps ${profiles:+"--build-profiles=$(IFS=, && echo "${profiles[*]}")"} \
        >"$FOLDER/build.log" 2>&1 ||
        { tail -n 40 "$FOLDER/build.log" >&2 && exit 1; }
)
echo "$FOLDER/llmd_${version}_amd64.deb"
[[ ! ${CUDA:-} ]] || echo "$FOLDER/llmd-cuda_${version}_amd64.deb"
[[ ! ${TORCH:-} ]] || echo "$FOLDER/llmd-torch_${version}_amd64.deb"
