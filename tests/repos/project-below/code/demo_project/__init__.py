import six


def main():
    print("demo", six.__version__)
