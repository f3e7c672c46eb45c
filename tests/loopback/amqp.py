"""The AMQP side of the stand-in service. Runs in the test process, in one thread.

All traffic goes through one connection that only :class:`Broker`'s thread touches
(pika connections are not thread-safe); other threads hand it work with ``call``.
"""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

import pika
from pika.spec import Basic, BasicProperties

if TYPE_CHECKING:
    from collections.abc import Callable

    from pika.adapters.blocking_connection import BlockingChannel

T = TypeVar("T")
Message = dict[str, Any]

EXCHANGES = ("tasks", "results", "heartbeats", "commands")
_VERSION_BYTE = b"\x01"


def pack(message_type: str, data: Message) -> bytes:
    """Encode a message as version 1 of the endpoint's protocol does."""
    return (
        _VERSION_BYTE
        + json.dumps({"message_type": message_type, "data": data}).encode()
    )


def unpack(body: bytes) -> Message:
    """The ``data`` of a version 1 message."""
    if body[:1] != _VERSION_BYTE:
        raise ValueError(f"not a version 1 message: {body[:16]!r}")
    data: Message = json.loads(body[1:])["data"]
    return data


def task_queue(endpoint_id: str) -> str:
    """The queue that a user endpoint takes its tasks from."""
    return f"{endpoint_id}.tasks"


def command_queue(endpoint_id: str) -> str:
    """The queue that a core endpoint takes its commands from."""
    return f"{endpoint_id}.commands"


class Broker(threading.Thread):
    """The service's own connection to RabbitMQ.

    ``prefix`` keeps several stand-ins on one broker apart. ``on_result`` and
    ``on_heartbeat`` are called in the broker thread and may call its methods directly.
    """

    def __init__(
        self,
        url: str,
        prefix: str,
        on_result: Callable[[bytes], None],
        on_heartbeat: Callable[[bytes], None],
    ) -> None:
        super().__init__(name="loopback-broker", daemon=True)
        self.url = url
        self.group_prefix = f"{prefix}.tg."
        self._prefix = prefix
        self._handlers = {"results": on_result, "heartbeats": on_heartbeat}
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self._channel: BlockingChannel = self._connection.channel()
        self._stopping = threading.Event()
        self._declare_shared()

    def name_of(self, shared: str) -> str:
        """The broker's name of a shared exchange or queue."""
        return f"{self._prefix}.{shared}"

    def _declare_shared(self) -> None:
        for exchange in EXCHANGES:
            self._channel.exchange_declare(
                self.name_of(exchange), "topic", durable=True
            )
        for shared, handler in self._handlers.items():
            queue = self.name_of(shared)
            self._channel.queue_declare(queue, durable=True)
            self._channel.queue_bind(queue, queue, routing_key=f"*.{shared}")
            self._channel.basic_consume(queue, _acknowledging(handler))

    def run(self) -> None:
        """Serve the connection until :meth:`stop`."""
        while not self._stopping.is_set():
            self._connection.process_data_events(time_limit=0.2)
        self._connection.close()

    def stop(self) -> None:
        """End the thread and close the connection."""
        self._stopping.set()
        self.join(10)

    def call(self, work: Callable[[], T]) -> T:
        """Run ``work`` in the broker thread and return what it returns."""
        if threading.current_thread() is self:
            return work()
        outcome: Future[T] = Future()

        def _do() -> None:
            try:
                outcome.set_result(work())
            except Exception as error:
                outcome.set_exception(error)

        self._connection.add_callback_threadsafe(_do)
        return outcome.result(30)

    def declare_endpoint(self, endpoint_id: str) -> None:
        """Create an endpoint's queues, which it declares only passively."""
        self.call(lambda: self._declare_endpoint(endpoint_id))

    def _declare_endpoint(self, endpoint_id: str) -> None:
        for queue, exchange in (
            (task_queue(endpoint_id), "tasks"),
            (command_queue(endpoint_id), "commands"),
        ):
            self._channel.queue_declare(queue, durable=True)
            self._channel.queue_bind(queue, self.name_of(exchange), routing_key=queue)

    def declare_group(self, group_id: str) -> None:
        """Create a task group's result queue, before the SDK consumes from it."""
        queue = self.group_prefix + group_id
        self.call(lambda: self._channel.queue_declare(queue, durable=True))

    def consume_info(self, queue: str, exchange: str) -> Message:
        """What an endpoint is told in order to consume from ``queue``."""
        return {
            "connection_url": self.url,
            "exchange": self.name_of(exchange),
            "queue": queue,
        }

    def publish_info(self, endpoint_id: str, shared: str) -> Message:
        """What an endpoint is told in order to publish results or heartbeats."""
        name = self.name_of(shared)
        return {
            "connection_url": self.url,
            "exchange": name,
            "queue": name,
            "queue_publish_kwargs": {
                "exchange": name,
                "routing_key": f"{endpoint_id}.{shared}",
                "mandatory": True,
                "properties": {"delivery_mode": 2},
            },
        }

    def send_command(self, endpoint_id: str, command: Message) -> None:
        """Send a command to a core endpoint, stamped now."""
        properties = BasicProperties(
            content_type="application/json", timestamp=int(time.time()), delivery_mode=2
        )
        self._publish(
            "commands",
            command_queue(endpoint_id),
            json.dumps(command).encode(),
            properties,
        )

    def send_task(self, endpoint_id: str, body: bytes, headers: Message) -> None:
        """Put a task into a user endpoint's queue."""
        properties = BasicProperties(headers=headers, delivery_mode=2)
        self._publish("tasks", task_queue(endpoint_id), body, properties)

    def send_result(self, group_id: str, body: bytes) -> None:
        """Hand a result message to the SDK, as it is."""
        properties = BasicProperties(
            headers={}, timestamp=int(time.time()), delivery_mode=2
        )
        self._publish(None, self.group_prefix + group_id, body, properties)

    def drop_tasks(self, endpoint_id: str) -> None:
        """Forget the tasks that no user endpoint has taken yet."""
        self.call(lambda: self._channel.queue_purge(task_queue(endpoint_id)))

    def _publish(
        self, exchange: str | None, key: str, body: bytes, props: BasicProperties
    ) -> None:
        name = self.name_of(exchange) if exchange else ""
        self.call(
            lambda: self._channel.basic_publish(name, key, body, props, mandatory=True)
        )


def _acknowledging(
    handler: Callable[[bytes], None],
) -> Callable[[BlockingChannel, Basic.Deliver, BasicProperties, bytes], None]:
    """A consumer callback that acknowledges once ``handler`` has done its work."""

    def _on_message(
        channel: BlockingChannel,
        deliver: Basic.Deliver,
        _props: BasicProperties,
        body: bytes,
    ) -> None:
        handler(body)
        channel.basic_ack(deliver.delivery_tag)

    return _on_message
