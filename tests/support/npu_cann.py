"""A CANN that has memory and nothing else, made of what a torch-npu wheel asks its libraries for.

Device memory is the host's, streams are done at once, and no operator exists: enough for `import torch_npu`,
tensors on `npu:0` and the bookkeeping of graphs. What computes is `npu_memory.py`.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

LIBRARIES = (
    *("ascendcl", "hccl", "acl_op_compiler", "ge_runner", "graph", "acl_tdt_channel"),
    *("fmk_parser", "ascend_protobuf", "opapi", "runtime"),
)
REFUSED = 107002  # "no device"
FAILS = {  # what must not seem to work
    *("aclopCompileAndExecute", "aclopCompileAndExecuteV2", "aclrtLaunchKernelWithHostArgs"),
    *("rtKernelLaunch", "aclrtReserveMemAddress", "aclrtMallocPhysical", "aclrtMapMem"),
    *("aclrtPointerGetAttributes", "aclsysGetCANNVersion", "aclrtGetErrorVerbose"),
}
ALLOCATE = "(void **p, size_t n) { return posix_memalign(p, 512, n + 512) ? 207001 : 0; }"
COUNTER = "(void **p) { static long last = 0x1000; *p = (void *)(last += 8); return 0; }"
BODIES = {
    "aclrtGetSocName": 'const char *aclrtGetSocName(void) { return "Ascend910B1"; }',
    "aclGetRecentErrMsg": 'const char *aclGetRecentErrMsg(void) { return "only memory"; }',
    "aclrtGetDeviceCount": "int aclrtGetDeviceCount(unsigned *n) { *n = 1; return 0; }",
    "aclrtGetDevice": "int aclrtGetDevice(int *d) { *d = 0; return 0; }",
    "aclrtGetCurrentContext": "int aclrtGetCurrentContext(void **c) { *c = (void *)16; return 0; }",
    **{
        name: f"int {name}{ALLOCATE}"
        for name in (
            "aclrtMalloc",
            "aclrtMallocAlign32",
            "aclrtMallocHost",
            "aclrtMallocHostWithCfg",
        )
    },
    **{
        name: f"int {name}{COUNTER}"
        for name in (
            "aclrtCreateStream",
            "aclrtCreateStreamWithConfig",
            "aclrtCreateEventExWithFlag",
        )
    },
    **{
        name: f"int {name}(void *p) {{ free(p); return 0; }}"
        for name in ("aclrtFree", "aclrtFreeHost")
    },
    **{
        name: f"int {name}(void *d, size_t m, const void *s, size_t n) {{ memmove(d, s, n); return 0; }}"
        for name in ("aclrtMemcpy", "aclrtMemcpyAsync")
    },
    **{
        name: f"int {name}(void *d, size_t m, int v, size_t n) {{ memset(d, v, n); return 0; }}"
        for name in ("aclrtMemset", "aclrtMemsetAsync")
    },
    "aclrtGetMemInfo": "int aclrtGetMemInfo(int a, size_t *f, size_t *t)"
    " { *f = 8ul << 30; *t = 16ul << 30; return 0; }",
    "aclrtEventElapsedTime": "int aclrtEventElapsedTime(float *f) { *f = 0; return 0; }",
    "aclrtStreamQuery": "int aclrtStreamQuery(void *s, int *o) { *o = 0; return 0; }",
    "aclrtQueryEventStatus": "int aclrtQueryEventStatus(void *s, int *o) { *o = 1; return 0; }",
    "aclrtQueryEventWaitStatus": "int aclrtQueryEventWaitStatus(void *s, int *o) { *o = 0; return 0; }",
    "aclrtStreamGetId": "int aclrtStreamGetId(void *s, int *o) { *o = (int)(long)s; return 0; }",
    "aclrtGetPrimaryCtxState": "int aclrtGetPrimaryCtxState(int d, unsigned *f, int *a)"
    " { if (f) *f = 0; *a = 1; return 0; }",
    "aclrtGetStreamOverflowSwitch": "int aclrtGetStreamOverflowSwitch(void *s, unsigned *f)"
    " { *f = 0; return 0; }",
    "aclGetDeviceCapability": "int aclGetDeviceCapability(unsigned d, int t, long *v)"
    " { *v = 0; return 0; }",
    "aclGetCannAttribute": "int aclGetCannAttribute(int a, int *v) { *v = 0; return 0; }",
    "aclrtGetDeviceInfo": "int aclrtGetDeviceInfo(unsigned d, int a, long *v) { *v = 24; return 0; }",
    "aclGetCompileoptSize": "size_t aclGetCompileoptSize(int o) { return 16; }",
    "aclGetCompileopt": "int aclGetCompileopt(int o, char *v, size_t n)"
    ' { strncpy(v, "disable", n); return 0; }',
    "aclsysGetVersionStr": "int aclsysGetVersionStr(const char *n, char *v)"
    ' { strcpy(v, "8.5.0"); return 0; }',
    "aclmdlRICaptureBegin": "static int recording;"
    " int aclmdlRICaptureBegin(void *s, int m) { recording = 1; return 0; }",
    "aclmdlRICaptureEnd": "int aclmdlRICaptureEnd(void *s, void **g)"
    " { recording = 0; *g = (void *)119; return 0; }",
    "aclmdlRICaptureGetInfo": "int aclmdlRICaptureGetInfo(void *s, int *o, void **g)"
    " { if (o) *o = recording; if (g) *g = recording ? (void *)119 : 0; return 0; }",
    "aclmdlRICaptureTaskGrpEnd": "int aclmdlRICaptureTaskGrpEnd(void *s, void **h)"
    " { static long last = 0x5000; *h = (void *)(last += 8); return 0; }",
    "aclmdlRIGetId": "int aclmdlRIGetId(void *g, unsigned *i) { *i = 1; return 0; }",
    "aclrtLaunchHostFunc": "int aclrtLaunchHostFunc(void *s, void (*f)(void *), void *a)"
    " { f(a); return 0; }",
}


def build(wheel: Path, folder: Path) -> None:
    """Libraries for an unpacked wheel, in `folder`; gcc and nm make them."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(_wanted(wheel) | set(BODIES), key=lambda n: (n != "aclmdlRICaptureBegin", n))
    bodies = [
        BODIES.get(n, f"int {n}() {{ return {REFUSED if n in FAILS else 0}; }}") for n in names
    ]
    includes = "#include <stdlib.h>\n#include <string.h>\n"
    (folder / "cann.c").write_text(includes + "\n".join(bodies) + "\n")
    (folder / "empty.c").write_text("")
    first, *others = LIBRARIES
    _compile(folder, first, "cann.c")
    for name in others:
        linked = ["-Wl,--no-as-needed", f"-L{folder}", f"-l{first}", "-Wl,-rpath,$ORIGIN"]
        _compile(folder, name, "empty.c", *linked)


def _compile(folder: Path, name: str, source: str, *flags: str) -> None:
    file = f"lib{name}.so"
    command = ["gcc", "-shared", "-fPIC", "-w", "-O1", f"-Wl,-soname,{file}", "-o"]
    subprocess.run([*command, str(folder / file), str(folder / source), *flags], check=True)


def _wanted(wheel: Path) -> set[str]:
    """What its libraries link to, and the names that they may look up while they run."""
    found: set[str] = set()
    package = wheel / "torch_npu"
    for library in [*package.glob("*.so"), *(package / "lib").glob("*.so")]:
        command = ["nm", "-D", "--undefined-only", str(library)]
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        found |= set(re.findall(r" U ((?:acl|rt|Msprof|Hccl)\w+)$", listed, re.MULTILINE))
    data = (package / "lib" / "libtorch_npu.so").read_bytes()
    looked_up = re.findall(rb"\0(acl(?!nn)(?:rt|mdl|op|sys|prof)?[A-Z]\w+)(?=\0)", data)
    return found | {name.decode() for name in looked_up}
