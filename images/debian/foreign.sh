# shellcheck shell=bash disable=SC2154  # the variables are those of `build`, which reads this file
# Install packages of an architecture that this machine's processor does not run: they are unpacked here, and set up in
# an emulated VM (see `second-stage`), because a container cannot register an emulator with the kernel or trace
# programs. A folder is passed in as a disk without boot loader, and a tar stream is returned.

# It takes 20 minutes on two cores; a kernel that hangs would never end.
readonly SET_UP_LIMIT=3h

unpack_foreign_packages() {
    step "unpack the packages of $suite for $arch"
    run mmdebstrap --mode=root --format=directory --variant=extract --architectures="$arch" \
        --skip=check/canmount,check/qemu,chroot/mount,cleanup/apt/cache,cleanup/apt/lists \
        --include='?essential' --include="apt,$packages" \
        "${dpkg_options[@]/#/--dpkgopt=}" \
        "$suite" "$root"
    rm -rf "$root"/var/lib/apt/lists/*
    local package cache=$root/var/cache/apt/archives
    for package in "$cache"/*.deb; do
        [ "$(dpkg-deb --field "$package" Essential)" != yes ] || echo "${package#"$root"}"
    done >"$cache/essential"
    tar --create --directory="$here/rootfs" ./etc/tiny-initramfs | tar --extract --directory="$root" --no-overwrite-dir --no-same-owner
}

set_up_foreign_packages() {
    step "set up the packages for $arch in an emulated VM"
    local stage=$scratch/stage kernel
    cp -r "$here" "$root/recipe"
    kernel=$(basename "$root"/boot/vmlinuz-*)
    mkdir -p "$stage"/initrd/{dev,proc,target}
    cp "$root/boot/$kernel" "$stage/kernel"
    cp "$root/usr/libexec/tiny-initramfs/init-static" "$stage/initrd/init"
    xzcat "$root/usr/lib/modules/${kernel#vmlinuz-}/kernel/drivers/block/virtio_blk.ko.xz" >"$stage/initrd/virtio_blk.ko"
    echo /virtio_blk.ko >"$stage/initrd/modules"
    (cd "$stage/initrd" && find . ! -name . | cpio --quiet -o -H newc -R 0:0) >"$stage/initrd.img"
    truncate -s "$((2 * DISK_SIZE_MIB))M" "$stage/root" "$stage/tar"
    run mke2fs -q -t ext4 -O ^has_journal -E lazy_itable_init=0 -d "$root" "$stage/root"
    rm -rf "$root"

    # Its console is this script's output, so that progress is visible. Its last line is the result.
    timeout --foreground "$SET_UP_LIMIT" qemu-system-aarch64 -machine virt,gic-version=max -accel tcg,tb-size=320 -cpu max,pauth-impdef=on -smp 2 -m 1024 \
        -nodefaults -no-user-config -no-reboot -display none -serial stdio \
        -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny \
        -kernel "$stage/kernel" -initrd "$stage/initrd.img" \
        -append "root=/dev/vda rootfstype=ext4 rw quiet panic=-1 mitigations=off init=/recipe/second-stage -- $ROOT_UUID $arch $SOURCE_DATE_EPOCH ${flavour:+/recipe/${flavour##*/}}" \
        -blockdev "raw,node-name=root,file.driver=file,file.filename=$stage/root,file.cache.no-flush=on,cache.no-flush=on" \
        -blockdev "raw,node-name=tar,file.driver=file,file.filename=$stage/tar,file.cache.no-flush=on,cache.no-flush=on" \
        -device virtio-blk-pci,drive=root -device virtio-blk-pci,drive=tar </dev/null 2>&1 | tee "$scratch/log" || true
    grep -q '^second-stage: done' "$scratch/log" || {
        explain "$scratch/log"
        die "the packages for $arch were not set up within $SET_UP_LIMIT: the VM's last lines are above"
    }
    mkdir "$root"
    tar --extract --file="$stage/tar" --directory="$root" --numeric-owner --xattrs --xattrs-include='*' --same-permissions
    rm -rf "$stage"
}
