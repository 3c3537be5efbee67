"""The kernel that Colab starts: IPython's with another shell."""

from google.colab._shell import Shell
from ipykernel.ipkernel import IPythonKernel


class Kernel(IPythonKernel):
    shell_class = Shell
