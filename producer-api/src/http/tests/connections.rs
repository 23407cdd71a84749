//! Clients that are slow, rude or gone, on a real socket.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::timeout,
};

use crate::http::{serve, testing::Api};

struct Server {
    api: Api,
    address: SocketAddr,
    tasks: JoinSet<anyhow::Result<()>>,
}

impl Server {
    async fn start(settings: &str) -> Self {
        let api = Api::with(settings).await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(serve(api.app.clone(), listener, api.shutdown.clone()));
        Self {
            api,
            address,
            tasks,
        }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// The head of a submit.
    fn head(&self, more: &str) -> String {
        format!(
            "POST /api/jobs HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\
             content-type: application/json\r\n{more}\r\n",
            self.api.key
        )
    }

    async fn stop(mut self) {
        self.api.shutdown.cancel();
        let stopped = timeout(Duration::from_secs(10), self.tasks.join_next()).await;
        stopped
            .expect("it stops in time")
            .unwrap()
            .unwrap()
            .unwrap();
    }
}

/// All that comes until the server closes the connection.
async fn rest(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    timeout(Duration::from_secs(10), stream.read_to_end(&mut answer))
        .await
        .expect("the server closes it")
        .unwrap();
    String::from_utf8(answer).unwrap()
}

/// One answer with a content-length, leaving the connection open.
async fn one(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let mut byte = [0];
    loop {
        stream.read_exact(&mut byte).await.unwrap();
        answer.push(byte[0]);
        if answer.ends_with(b"\r\n\r\n") {
            break;
        }
    }
    let head = String::from_utf8(answer).unwrap();
    let length = head
        .lines()
        .find_map(|line| {
            line.to_ascii_lowercase()
                .strip_prefix("content-length: ")?
                .parse()
                .ok()
        })
        .unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.unwrap();
    head + &String::from_utf8(body).unwrap()
}

#[tokio::test]
async fn a_connection_serves_many_requests() {
    let server = Server::start("").await;
    let mut stream = server.connect().await;
    for _ in 0..3 {
        let request = server.head("content-length: 15\r\n") + "{\"prompt\": \"a\"}";
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = one(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    }
    assert_eq!(server.api.app.store.backlog().await.unwrap(), 3);
    drop(stream);
    server.stop().await;
}

#[tokio::test]
async fn a_head_that_does_not_come_whole_is_given_up() {
    let server = Server::start("[api]\nrequest_timeout = \"300ms\"").await;
    let mut slow = server.connect().await;
    slow.write_all(b"GET /health HTTP/1.1\r\nhost: x\r\n")
        .await
        .unwrap();
    let answer = rest(&mut slow).await;
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(
        answer.contains("application/problem+json") && answer.contains("request_timeout"),
        "{answer}"
    );
    // One that says nothing at all is closed without a word.
    let mut silent = server.connect().await;
    assert_eq!(rest(&mut silent).await, "");
    server.stop().await;
}

#[tokio::test]
async fn a_body_that_never_ends_is_given_up() {
    let server = Server::start("[api]\nrequest_timeout = \"300ms\"").await;
    for head in ["content-length: 1000\r\n", "transfer-encoding: chunked\r\n"] {
        let mut slow = server.connect().await;
        slow.write_all(server.head(head).as_bytes()).await.unwrap();
        slow.write_all(b"1\r\n{\r\n").await.unwrap();
        let answer = rest(&mut slow).await;
        assert!(
            answer.starts_with("HTTP/1.1 408") && answer.contains("request_timeout"),
            "{answer}"
        );
    }
    server.stop().await;
}

#[tokio::test]
async fn a_long_poll_may_take_longer_than_a_request_may_take_to_come() {
    let server = Server::start("[api]\nrequest_timeout = \"200ms\"").await;
    let id = server.api.submit("{\"prompt\": \"a\"}").await;
    let mut stream = server.connect().await;
    let request = format!(
        "GET /api/jobs/{id}?wait=600ms HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
        server.api.key
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = one(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_still_sends_can_read_why_it_was_refused() {
    let server = Server::start("[api]\nmax_body_bytes = 10000").await;
    let key = server.head("").replace(&server.api.key, "sluice_wrong");
    for (head, status) in [
        (server.head("content-length: 8000000\r\n"), 413),
        (server.head("transfer-encoding: chunked\r\n"), 413),
        (
            key.replace("\r\n\r\n", "\r\ncontent-length: 8000000\r\n\r\n"),
            401,
        ),
    ] {
        let stream = server.connect().await;
        let (mut from, mut to) = stream.into_split();
        let sending = async {
            to.write_all(head.as_bytes()).await.unwrap();
            let chunk = [b"1000\r\n".as_slice(), &[b' '; 0x1000], b"\r\n"].concat();
            for _ in 0..1900 {
                if to.write_all(&chunk).await.is_err() {
                    break;
                }
            }
        };
        let reading = async {
            let mut answer = Vec::new();
            from.read_to_end(&mut answer)
                .await
                .map(|_| String::from_utf8(answer).unwrap())
        };
        let ((), answer) = tokio::join!(sending, reading);
        let answer = answer.unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")),
            "{answer}"
        );
        assert!(answer.contains("application/problem+json"), "{answer}");
    }
    server.stop().await;
}

#[tokio::test]
async fn what_is_no_http_is_refused() {
    let server = Server::start("").await;
    for request in [
        "nonsense\r\n\r\n",
        "GET / HTTP/1.1\r\nbad header\r\n\r\n",
        "GET / HTTP/9.9\r\n\r\n",
    ] {
        let mut stream = server.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let answer = rest(&mut stream).await;
        assert!(answer.starts_with("HTTP/1.1 400"), "{request}: {answer}");
    }
    let mut stream = server.connect().await;
    let many: String = (0..200).map(|n| format!("x-{n}: y\r\n")).collect();
    stream
        .write_all(format!("GET / HTTP/1.1\r\n{many}\r\n").as_bytes())
        .await
        .unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let mut stream = server.connect().await;
    let twice = server.head("content-length: 15\r\ncontent-length: 16\r\n") + "{\"prompt\": \"a\"}";
    stream.write_all(twice.as_bytes()).await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    assert_eq!(server.api.app.store.backlog().await.unwrap(), 0);
    server.stop().await;
}

#[tokio::test]
async fn at_shutdown_idle_connections_close_and_long_polls_answer() {
    let server = Server::start("").await;
    let id = server.api.submit("{\"prompt\": \"a\"}").await;
    let mut idle = server.connect().await;
    idle.write_all(b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n")
        .await
        .unwrap();
    assert!(one(&mut idle).await.starts_with("HTTP/1.1 200"));
    let mut poll = server.connect().await;
    let request = format!(
        "GET /api/jobs/{id}?wait=30s HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n",
        server.api.key
    );
    poll.write_all(request.as_bytes()).await.unwrap();
    crate::http::testing::until(|| {
        format!("{:?}", server.api.app.waiters).contains(&id.to_string())
    })
    .await;
    server.stop().await;
    assert_eq!(rest(&mut idle).await, "");
    let answer = rest(&mut poll).await;
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains("\"queued\""),
        "{answer}"
    );
}

#[tokio::test]
async fn a_body_that_breaks_the_rules_is_refused() {
    let server = Server::start("").await;
    let mut stream = server.connect().await;
    let request = server.head("transfer-encoding: chunked\r\n") + "zz\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let answer = rest(&mut stream).await;
    assert!(
        answer.starts_with("HTTP/1.1 400") && answer.contains("\"bad_body\""),
        "{answer}"
    );
    server.stop().await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_client_that_does_not_take_its_answers_is_cut_off() {
    let server = Server::start("[api]\nrequest_timeout = \"500ms\"").await;
    let mut deaf = server.connect().await;
    let request = b"GET /docs/swagger-ui-bundle.js HTTP/1.1\r\nhost: x\r\n\r\n";
    deaf.write_all(&request.repeat(50)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    // Were it still there, the server would wait longer for it than this waits for the server.
    server.stop().await;
    drop(deaf);
}
