"""Where tasks arrive: the only place that knows the endpoint and Parsl."""
