"""Take part in projects: the SDK's client, synchronous and typed. What it can do stands in a module per noun."""

from gramfuse.loops import Loops


class Client(Loops):
    """One organization's connection to one server.

    Args:
        url: the server; default GRAMFUSE_URL, else the one that `gramfuse login` kept.
        token: the organization's token; default GRAMFUSE_TOKEN, else the kept one.
        home: the client's home; default GRAMFUSE_HOME, else the platform's folder.
        allow_http: permit http:// to another machine than this one.
        parallel: parts on their way at once.
        on_no_worker: told, where what is waited for is a worker's and none of the server's is alive.
        transport: the way to the server, for tests.
        sleep: how to pass the time between two looks.

    Projects are named in full (`acme.tweets`) or, where only one visible project is called so, by the last word.
    Every method raises the class of the server's problem document, and TransportError where it cannot be reached.
    """
