"""The worker process: started, supervised, replaced; and the frames between it and the front.

`spawn.prestart` starts a process and imports next to nothing. `supervisor.Supervisor` keeps one alive
and loads models into it; what it hands out are `client.WorkerEngine`s. `process` is the inside. Nothing
is imported here, as each side needs its own half.
"""
