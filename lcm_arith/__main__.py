"""``python -m lcm_arith`` is ``lcm-arith``."""

from lcm_arith.cli.main import main

if __name__ == "__main__":
    main()
