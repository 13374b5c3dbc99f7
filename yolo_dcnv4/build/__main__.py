import sys

from yolo_dcnv4.build.command import run

sys.exit(run(sys.argv[1:]))
