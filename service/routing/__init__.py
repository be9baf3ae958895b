"""Which bundle answers a request: experiments, maturity of domains, live reload, shadow."""
