"""``python -m sticky_session`` is the ``sticky-session`` command."""

from sticky_session.cli import main

if __name__ == "__main__":
    main()
