"""Train and test a model: `python run_recbole_flr.py --model=FLR --dataset=toys_demo`; `--help` lists the options."""

import sys

from recbole_flr.command import main

if __name__ == "__main__":
    sys.exit(main())
