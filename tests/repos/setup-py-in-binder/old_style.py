import six

PY3 = six.PY3
