"""The demo's domain: requests for kubectl commands, in English and Korean. Data, base model and traffic share it."""
