"""The canary controller: takes releases to all of a target's traffic step by step, or back.

Each of these imports only those below it:

- `api`, `controller`: the requests that the service takes, and the tasks that carry them out;
- `rollout`: one rollout from its precheck to its end, with the commit point (`rollout.runner`);
- `placement`, `target`: what tiers and targets have to have now, reconciled whatever dies;
- `state`: the durable records and the committed evidence;
- `analysis`: the verdict on a canary (`analysis.judge`) and its statistics, and what is measured for it;
- `servers`, `traffic`: the inference servers of a tier, and the traffic router: an interface each, and a module for
  each implementation.
"""
