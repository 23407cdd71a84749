//! Where requests to addresses that a client names may go. Pure: which addresses a name has is
//! found out elsewhere, and each of them is judged here before it is connected to.
//!
//! **Invariant.** What is not known to be public is refused: of IPv6 only `2000::/3` is open, less
//! what IANA has set aside in it, and an address that carries an IPv4 one is judged by that.

use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use url::{Host, Url};

/// Longest URL that is taken.
const MOST_URL: usize = 2000;

/// IPv4 that is not public, by the special-purpose registry of IANA, and what cloud machines ask
/// for their metadata at a public address.
const CLOSED_V4: [(Ipv4Net, &str); 17] = [
    (v4([0, 0, 0, 0], 8), "of this network"),
    (v4([10, 0, 0, 0], 8), "private"),
    (v4([100, 64, 0, 0], 10), "shared by a carrier's customers"),
    (v4([127, 0, 0, 0], 8), "loopback"),
    (v4([169, 254, 0, 0], 16), "link-local"),
    (v4([172, 16, 0, 0], 12), "private"),
    (v4([192, 0, 0, 0], 24), "reserved"),
    (v4([192, 0, 2, 0], 24), "for documentation"),
    (v4([192, 88, 99, 0], 24), "reserved"),
    (v4([192, 168, 0, 0], 16), "private"),
    (v4([198, 18, 0, 0], 15), "for benchmarks"),
    (v4([198, 51, 100, 0], 24), "for documentation"),
    (v4([203, 0, 113, 0], 24), "for documentation"),
    (v4([224, 0, 0, 0], 4), "multicast"),
    (v4([240, 0, 0, 0], 4), "reserved"),
    (v4([168, 63, 129, 16], 32), "for metadata"),
    (v4([255, 255, 255, 255], 32), "broadcast"),
];

/// What is not public of the one part of IPv6 that is.
const CLOSED_V6: [(Ipv6Net, &str); 4] = [
    (v6([0x2001, 0, 0], 23), "reserved"),
    (v6([0x2001, 0xdb8, 0], 32), "for documentation"),
    (v6([0x2002, 0, 0], 16), "a tunnel"),
    (v6([0x3fff, 0, 0], 20), "for documentation"),
];

/// The well-known prefix behind which a translator (NAT64) reaches IPv4.
const TRANSLATED: Ipv6Net = v6([0x64, 0xff9b, 0], 96);
const PUBLIC_V6: Ipv6Net = v6([0x2000, 0, 0], 3);
const UNIQUE_LOCAL: Ipv6Net = v6([0xfc00, 0, 0], 7);
const LINK_LOCAL: Ipv6Net = v6([0xfe80, 0, 0], 10);

const fn v4(bytes: [u8; 4], length: u8) -> Ipv4Net {
    let [a, b, c, d] = bytes;
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
}

const fn v6(words: [u16; 3], length: u8) -> Ipv6Net {
    let [a, b, c] = words;
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, c, 0, 0, 0, 0, 0), length)
}

/// Where requests may go.
#[derive(Clone, Debug, Default)]
pub struct Egress {
    allowed: Vec<IpNet>,
}

/// An address that no request goes to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{address} is {kind}: no webhook goes there unless webhooks.allow_networks has it")]
pub struct Closed {
    /// The address.
    pub address: IpAddr,
    /// What it is.
    pub kind: &'static str,
}

/// What is no URL for a webhook.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadUrl {
    /// It does not parse.
    #[error("is no URL; write for example https://example.com/hook")]
    Malformed,
    /// It is too long.
    #[error("is longer than {MOST_URL} characters")]
    Long,
    /// Another protocol.
    #[error("must begin with https:// or http://")]
    Scheme,
    /// It carries a login, which would be shown with it.
    #[error("must not hold a user or a password")]
    Login,
    /// It names an address that is not public.
    #[error("{0}")]
    Closed(#[from] Closed),
}

impl Egress {
    /// Public addresses, and those of these networks.
    #[must_use]
    pub fn new(allowed: Vec<IpNet>) -> Self {
        Self { allowed }
    }

    /// Whether a request may go to this address.
    ///
    /// # Errors
    /// What it is, when it may not.
    pub fn check(&self, address: IpAddr) -> Result<(), Closed> {
        // `::ffff:10.0.0.1` is the same host as `10.0.0.1`.
        let plain = address.to_canonical();
        if self.allowed.iter().any(|net| net.contains(&plain)) {
            return Ok(());
        }
        match closed(plain) {
            None => Ok(()),
            Some(kind) => Err(Closed { address, kind }),
        }
    }

    /// The URL, if a webhook may have it. An address in it is judged in any form that browsers
    /// know (`2130706433`, `0x7f.1`, `0177.0.0.1`); a name is judged when it is resolved.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn url(&self, text: &str) -> Result<Url, BadUrl> {
        if text.len() > MOST_URL {
            return Err(BadUrl::Long);
        }
        let url = Url::parse(text).map_err(|_| BadUrl::Malformed)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(BadUrl::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(BadUrl::Login);
        }
        match url.host() {
            Some(Host::Ipv4(address)) => self.check(address.into())?,
            Some(Host::Ipv6(address)) => self.check(address.into())?,
            Some(Host::Domain(_)) => {}
            None => return Err(BadUrl::Malformed),
        }
        Ok(url)
    }
}

/// What an address is that is not public.
fn closed(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => closed_v4(address),
        IpAddr::V6(address) if TRANSLATED.contains(&address) => {
            let [.., a, b, c, d] = address.octets();
            closed_v4(Ipv4Addr::new(a, b, c, d))
        }
        IpAddr::V6(address) => closed_v6(address),
    }
}

fn closed_v4(address: Ipv4Addr) -> Option<&'static str> {
    let found = CLOSED_V4.iter().find(|(net, _)| net.contains(&address));
    found.map(|(_, kind)| *kind)
}

fn closed_v6(address: Ipv6Addr) -> Option<&'static str> {
    if !PUBLIC_V6.contains(&address) {
        return Some(match address {
            _ if address.is_loopback() => "loopback",
            _ if address.is_multicast() => "multicast",
            _ if UNIQUE_LOCAL.contains(&address) => "private",
            _ if LINK_LOCAL.contains(&address) => "link-local",
            _ => "reserved",
        });
    }
    let found = CLOSED_V6.iter().find(|(net, _)| net.contains(&address));
    found.map(|(_, kind)| *kind)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(address: &str) -> Result<(), &'static str> {
        Egress::default()
            .check(address.parse().unwrap())
            .map_err(|closed| closed.kind)
    }

    #[test]
    fn addresses_that_are_not_public_are_closed() {
        for (address, kind) in [
            ("127.0.0.1", "loopback"),
            ("127.255.255.254", "loopback"),
            ("0.0.0.0", "of this network"),
            ("10.1.2.3", "private"),
            ("172.16.0.1", "private"),
            ("172.31.255.255", "private"),
            ("192.168.1.1", "private"),
            ("169.254.169.254", "link-local"),
            ("100.64.0.1", "shared by a carrier's customers"),
            ("100.100.100.200", "shared by a carrier's customers"),
            ("192.0.0.192", "reserved"),
            ("168.63.129.16", "for metadata"),
            ("198.19.0.1", "for benchmarks"),
            ("224.0.0.1", "multicast"),
            ("255.255.255.255", "reserved"),
            ("::", "reserved"),
            ("::1", "loopback"),
            ("::127.0.0.1", "reserved"),
            ("::ffff:127.0.0.1", "loopback"),
            ("::ffff:a00:1", "private"),
            ("64:ff9b::10.0.0.1", "private"),
            ("64:ff9b::169.254.169.254", "link-local"),
            ("64:ff9b:1::1", "reserved"),
            ("fe80::1", "link-local"),
            ("fec0::1", "reserved"),
            ("fc00::1", "private"),
            ("fd00:ec2::254", "private"),
            ("ff02::1", "multicast"),
            ("100::1", "reserved"),
            ("2001::1", "reserved"),
            ("2001:db8::1", "for documentation"),
            ("2002:7f00:1::1", "a tunnel"),
            ("3fff::1", "for documentation"),
            ("5f00::1", "reserved"),
        ] {
            assert_eq!(check(address), Err(kind), "{address}");
        }
    }

    #[test]
    fn public_addresses_are_open() {
        for address in [
            "1.1.1.1",
            "172.32.0.1",
            "100.63.255.255",
            "100.128.0.1",
            "169.253.0.1",
            "223.255.255.255",
            "2606:4700:4700::1111",
            "2a00:1450::1",
            "::ffff:1.1.1.1",
            "64:ff9b::1.1.1.1",
        ] {
            assert_eq!(check(address), Ok(()), "{address}");
        }
    }

    #[test]
    fn a_network_can_be_allowed() {
        let nets = ["10.1.0.0/16", "::1/128"].map(|net| net.parse().unwrap());
        let egress = Egress::new(nets.into());
        for (address, open) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("10.2.0.1", false),
            ("::1", true),
            ("127.0.0.1", false),
        ] {
            assert_eq!(egress.check(address.parse().unwrap()).is_ok(), open);
        }
    }

    #[test]
    fn an_address_is_known_in_every_form() {
        for url in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f000001/",
            "http://0x7f.1/",
            "http://0177.0.0.1/",
            "http://127.0.0.1./",
            "http://\u{2460}27.0.0.1/",
            "http://%31%32%37.0.0.1/",
            "http://[::1]/",
            "http://[::ffff:127.0.0.1]/",
            "http://[::ffff:7f00:1]/",
            "http://[64:ff9b::7f00:1]/",
            "https://169.254.169.254/latest/meta-data",
            "http://0/",
        ] {
            let refused = Egress::default().url(url);
            assert!(
                matches!(refused, Err(BadUrl::Closed(_))),
                "{url}: {refused:?}"
            );
        }
    }

    #[test]
    fn what_is_no_url_for_a_webhook_is_refused() {
        let long = format!("https://example.com/{}", "x".repeat(MOST_URL));
        for (url, problem) in [
            ("", BadUrl::Malformed),
            ("example.com", BadUrl::Malformed),
            ("http://", BadUrl::Malformed),
            ("http://[fe80::1%25eth0]/", BadUrl::Malformed),
            ("ftp://example.com", BadUrl::Scheme),
            ("file:///etc/passwd", BadUrl::Scheme),
            ("https://u:p@example.com", BadUrl::Login),
            (&long, BadUrl::Long),
        ] {
            assert_eq!(Egress::default().url(url), Err(problem), "{url}");
        }
        let good = "https://example.com:8443/hook?team=a";
        assert_eq!(Egress::default().url(good).unwrap().as_str(), good);
    }

    proptest! {
        /// However an IPv4 address is wrapped, the answer is that of the address itself.
        #[test]
        fn a_wrapped_address_is_judged_as_itself(bits: u32) {
            let plain = Ipv4Addr::from_bits(bits);
            let open = Egress::default().check(plain.into()).is_ok();
            let mapped = plain.to_ipv6_mapped();
            prop_assert_eq!(Egress::default().check(mapped.into()).is_ok(), open);
            let translated: Ipv6Addr = format!("64:ff9b::{plain}").parse().unwrap();
            prop_assert_eq!(Egress::default().check(translated.into()).is_ok(), open);
            let url = format!("http://{bits}/");
            prop_assert_eq!(Egress::default().url(&url).is_ok(), open);
        }
    }
}
