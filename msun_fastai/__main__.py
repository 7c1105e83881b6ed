"""`python -m msun_fastai`."""

from msun_fastai.cli import main

if __name__ == "__main__":
    main()
