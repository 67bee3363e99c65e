#!/bin/sh
# Start the server in the image. The kernels were compiled with it; a volume of an older image does not have them.
set -eu
mkdir -p "$FASTSLOW_CACHE/kernels"
chmod 0755 "$FASTSLOW_CACHE"
chmod 0700 "$FASTSLOW_CACHE/kernels"
for kernels in "${FASTSLOW_HOME:-/opt/fastslow}"/kernels/*.so; do
    copy="$FASTSLOW_CACHE/kernels/${kernels##*/}"
    [ -e "$copy" ] || cp "$kernels" "$copy"
done
exec fastslow serve "$@"
