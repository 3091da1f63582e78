"""Python on a machine whose clock is wrong: skewed.py SECONDS (-c CODE | -m MODULE) [ARGUMENT ...]

As we cannot set the clock, `time.time` is replaced before anybody takes it.
"""

import runpy
import sys
import time


def main() -> None:
    off_s, kind, program, *arguments = sys.argv[1:]
    true_time = time.time
    time.time = lambda: true_time() + float(off_s)
    sys.path[0] = ""  # as Python has it for -c and -m, instead of this file's folder
    sys.argv = [kind, *arguments]
    if kind == "-c":
        exec(compile(program, "<code>", "exec"), {"__name__": "__main__"})
    else:
        runpy.run_module(program, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
