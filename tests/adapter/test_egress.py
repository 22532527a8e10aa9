"""Which addresses and URLs are let through: the table, what IPv6 carries inside, and every spelling of a host."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from webhook_adapter.egress import AddressRefusedError, EgressPolicy, check_url, parse_url

# fmt: off
REFUSED = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "10.255.255.255", "100.64.0.1", "100.100.100.200", "127.0.0.1",
    "127.255.255.255", "168.63.129.16", "169.254.0.1", "169.254.169.254", "172.16.0.1", "172.31.255.255",
    "192.0.0.1", "192.0.0.192", "192.0.2.1", "192.31.196.1", "192.52.193.1", "192.88.99.1", "192.168.0.1",
    "192.175.48.1", "198.18.0.1", "198.19.255.255", "198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255",
    "240.0.0.1", "255.255.255.255", "::", "::1", "::2", "fe80::1", "fe80::1%eth0", "fec0::1", "fc00::1",
    "fd00:ec2::254", "fd12:3456::1", "ff02::1", "100::1", "100:0:0:1::1", "64:ff9b:1::808:808", "2001:1::1",
    "2001:2::1", "2001:3::1", "2001:4:112::1", "2001:10::1", "2001:20::1", "2001:30::1", "2001:1ff::1",
    "2001:db8::1", "2620:4f:8000::1", "3fff::1", "5f00::1", "4000::1", "8000::1", "200::1",
]
# fmt: on
# fmt: off
CARRYING = [
    "::ffff:10.0.0.1", "::ffff:7f00:1", "::10.0.0.1", "::127.0.0.1", "::ffff:0:10.0.0.1", "64:ff9b::a00:1",
    "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1", "2002:a00:1::1", "2002:7f00:1::", "2001:0:a00:1::1",
    "2001:0:808:808::f5ff:fffe", "2606:4700::5efe:a00:1", "2606:4700::200:5efe:7f00:1",
]
# fmt: on
# fmt: off
PUBLIC = [
    "8.8.8.8", "1.1.1.1", "93.184.216.34", "172.15.255.255", "172.32.0.1", "100.63.255.255", "100.128.0.1",
    "192.0.1.1", "198.17.255.255", "223.255.255.255", "2606:4700::1111", "2a00:1450:4001::1", "2001:4860:4860::8888",
    "64:ff9b::808:808", "2002:808:808::1", "::ffff:8.8.8.8", "2001:0:808:808::f7f7:f7f7", "2606:4700::5efe:808:808",
]
# fmt: on


@pytest.mark.parametrize("address", [*REFUSED, *CARRYING])
def test_no_address_outside_the_public_internet_passes(address: str) -> None:
    """WH10, F17, F18: every special range is refused, and so is every IPv6 form that carries one of them inside."""
    with pytest.raises(AddressRefusedError) as caught:
        EgressPolicy().judge(address)
    assert caught.value.address == address
    assert address in str(caught.value)
    assert caught.value.range


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_pass(address: str) -> None:
    """What is public passes, also where it is public inside and out."""
    EgressPolicy().judge(address)


@given(st.integers(0, 2**32 - 1).map(ipaddress.IPv4Address))
def test_an_ipv4_address_is_judged_alike_in_every_ipv6_dress(address: ipaddress.IPv4Address) -> None:
    """Mapped, NAT64, 6to4, Teredo and ISATAP forms of an address are refused exactly when the address is."""
    policy = EgressPolicy()
    value = int(address)
    dressed = [
        (0xFFFF << 32) | value,
        (0x64FF9B << 96) | value,
        (0x2002 << 112) | (value << 80) | 1,
        (0x20010000 << 96) | (0x08080808 << 64) | (~value & 0xFFFFFFFF),
        (0x20010000 << 96) | (value << 64) | 0xF7F7F7F7,
        (0x26064700 << 96) | (0x5EFE << 32) | value,
    ]

    def passes(text: str) -> bool:
        try:
            policy.judge(text)
        except AddressRefusedError:
            return False
        return True

    expected = passes(str(address))
    assert [passes(str(ipaddress.IPv6Address(each))) for each in dressed] == [expected] * len(dressed)


@given(st.integers(0, 2**128 - 1).map(ipaddress.IPv6Address))
def test_only_global_unicast_passes(address: ipaddress.IPv6Address) -> None:
    """Whatever IPv6 address passes is global unicast, or translates to a public IPv4 address."""
    try:
        EgressPolicy().judge(str(address))
    except AddressRefusedError:
        return
    assert address in ipaddress.IPv6Network("2000::/3") or address.ipv4_mapped or str(address).startswith("64:ff9b::")


def test_what_is_no_address_is_refused() -> None:
    """A resolver that answers with something else than addresses is not believed."""
    with pytest.raises(AddressRefusedError, match="no address"):
        EgressPolicy().judge("localhost")


def test_allow_lifts_the_table_for_its_ranges_alone() -> None:
    """An allowed network passes in all its dresses; its neighbours do not."""
    policy = EgressPolicy(allow=["10.1.0.0/16", "::1/128"])
    for address in ("10.1.2.3", "::ffff:10.1.2.3", "64:ff9b::a01:203", "::1"):
        policy.judge(address)
    for address in ("10.2.0.1", "127.0.0.1", "::2", "::10.1.2.3"):
        with pytest.raises(AddressRefusedError):
            policy.judge(address)


def test_allowing_what_is_outside_does_not_allow_what_is_inside() -> None:
    """All of IPv6 allowed still does not lead into private IPv4 networks."""
    policy = EgressPolicy(allow=["::/0"])
    policy.judge("fd00::1")
    for address in ("64:ff9b::a00:1", "2002:a00:1::1", "64:ff9b:1::a00:1", "::ffff:10.0.0.1"):
        with pytest.raises(AddressRefusedError):
            policy.judge(address)


def test_a_site_that_translates_itself_is_judged_by_what_it_translates_to() -> None:
    """The local NAT64 prefix, once allowed, leads to public addresses and to no others, at each prefix length."""
    policy = EgressPolicy(allow=["64:ff9b:1::/48"])
    for public in ("64:ff9b:1::808:808", "64:ff9b:1:808:8:800::", "64:ff9b:1:0:8:808:800:0"):
        policy.judge(public)
    for private in ("64:ff9b:1::a00:1", "64:ff9b:1:a00:0:100::", "64:ff9b:1:0:a:0:100:0"):
        with pytest.raises(AddressRefusedError):
            policy.judge(private)


def test_deny_beats_allow() -> None:
    """A denied network is refused although it is public, although it is allowed, and in every dress."""
    policy = EgressPolicy(allow=["127.0.0.0/8"], deny=["127.0.0.53/32", "8.8.0.0/16"])
    policy.judge("127.0.0.1")
    for address in ("127.0.0.53", "8.8.8.8", "::ffff:8.8.8.8", "64:ff9b::808:808"):
        with pytest.raises(AddressRefusedError, match="denied"):
            policy.judge(address)


def test_networks_given_in_mapped_form_hold_for_their_ipv4_addresses() -> None:
    """A range written as IPv4-mapped IPv6 means the IPv4 range."""
    with pytest.raises(AddressRefusedError, match="denied"):
        EgressPolicy(deny=["::ffff:8.8.0.0/112"]).judge("8.8.8.8")


def test_plain_http_needs_an_address_that_is_allowed_by_name() -> None:
    """Being public is not enough to be spoken to without TLS."""
    policy = EgressPolicy(allow=["127.0.0.0/8"])
    policy.judge_plain("127.0.0.1")
    for address in ("8.8.8.8", "10.0.0.1"):
        with pytest.raises(AddressRefusedError):
            policy.judge_plain(address)


@pytest.mark.parametrize("argument", ["allow", "deny"])
@pytest.mark.parametrize("value", [["10.0.0.1/8"], ["localhost"], "10.0.0.0/8", [8], [""]])
def test_a_network_that_is_none_is_refused_by_name(argument: str, value: list[str]) -> None:
    """An unusable network is found at construction, and the error says in which argument."""
    with pytest.raises(ValueError, match=argument):
        EgressPolicy(**{argument: value})


@pytest.mark.parametrize(
    ("url", "canonical"),
    [
        ("https://example.com", "https://example.com/"),
        ("HTTPS://EXAMPLE.COM:443/A?b=C", "https://example.com/A?b=C"),
        ("https://example.com./x", "https://example.com/x"),
        ("https://example.com:08443/x", "https://example.com:8443/x"),
        ("https://example.com?x=1", "https://example.com/?x=1"),
        ("https://bücher.example/", "https://xn--bcher-kva.example/"),
        ("https://xn--bcher-kva.example/", "https://xn--bcher-kva.example/"),
        ("https://b%C3%BCcher.example/", "https://xn--bcher-kva.example/"),
        ("https://a_b.example/", "https://a_b.example/"),
        ("https://134744072/", "https://8.8.8.8/"),
        ("https://0x08.0x8.010.8/", "https://8.8.8.8/"),
        ("https://8.8/", "https://8.0.0.8/"),
        ("https://8.8.8.8/", "https://8.8.8.8/"),
        ("https://[2606:4700:0:0::1111]/", "https://[2606:4700::1111]/"),
    ],
)
def test_a_url_is_kept_in_its_canonical_spelling(url: str, canonical: str) -> None:
    """Case, default ports, trailing dots, national letters and odd numbers all come out as one spelling."""
    assert str(check_url(url)) == canonical


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "127.0.0.1.", "0x7f.1", "0x7F000001", "2130706433", "0177.0.0.1", "017700000001", "127.1",
        "127.0.1", "0", "0x", "\uff11\uff12\uff17.0.0.\uff11", "127。0。0。1", "①②⑦.0.0.1", "%31%32%37.0.0.1",
        "0x7f.0.0.0x1", "localhost", "LOCALHOST.", "app.localhost", "169.254.169.254", "[::1]", "[::]",
        "[::ffff:7f00:1]", "[::ffff:127.0.0.1]", "[64:ff9b::a00:1]", "[2002:a00:1::1]", "[2001:0:a00:1::1]",
        "[::10.0.0.1]", "[::ffff:0:10.0.0.1]", "[fec0::1]", "[fe80::1]",
    ],
)  # fmt: skip
def test_a_literal_address_is_refused_at_registration_however_it_is_spelt(host: str) -> None:
    """F18: every way to write a forbidden address is understood, and refused before anything is stored."""
    with pytest.raises(ValueError, match="refused"):
        check_url(f"https://{host}/hook")


@pytest.mark.parametrize(
    "url",
    [
        "", "example.com", "//example.com/", "/path", "https:", "https://", "https:///x", "https:example.com",
        "ftp://example.com/", "file:///etc/passwd", "javascript:alert(1)", "http://example.com/",
        "https://user@example.com/", "https://u:p@example.com/", "https://@example.com/",
        "https://example.com/#part", "https://example.com#", "https://example.com:0/", "https://example.com:65536/",
        "https://example.com:-1/", "https://example.com:8x/", "https://example.com:1:2/", "https://a..b/",
        "https://.a/", "https://-a.b/", "https://a b/", "https://example.com/\r\nX: y", "https://example.com/\x00",
        "https://example.com/\u200b", "https://ex\tample.com/", "https://example.com\\@evil.example/",
        "https://ex%00ample.com/", "https://ex%2fample.com/", "https://a%40b.example/", "https://%ff.example/",
        "https://1.2.3.4.5/", "https://256.1.1.1/", "https://1.2.3.256/", "https://4294967296/", "https://08.1.1.1/",
        "https://example.0x1/", "https://[::1/", "https://::1/", "https://[fe80::1%25eth0]/", "https://[v1.x]/",
        "https://[127.0.0.1]/", "https://xn--a.example/",
        "https://" + "a" * 64 + ".example/", "https://" + "a." * 130 + "example/", "https://example.com/" + "a" * 2050,
    ],
)  # fmt: skip
def test_an_unusable_url_is_refused(url: str) -> None:
    """Whatever two parsers might read differently, or nothing can be sent to, is refused at registration."""
    with pytest.raises(ValueError, match="url"):
        check_url(url)


def test_no_error_shows_path_query_or_credentials() -> None:
    """F38: what is wrong with a URL is said without the parts in which people keep tokens."""
    for url in (
        "https://127.0.0.1/canary?canary",
        "https://canary:canary@example.com/",
        "http://example.com/canary",
        "https://a..b/canary?canary",
        "https://example.com:0/canary",
        "https://example.com/canary#canary",
    ):
        with pytest.raises(ValueError, match="url") as caught:
            check_url(url)
        assert "canary" not in str(caught.value)


def test_plain_http_is_registered_only_where_it_may_be_spoken() -> None:
    """With `allow_http` a name passes until it is resolved, and a literal address only if the policy allows it."""
    policy = EgressPolicy(allow=["127.0.0.0/8"])
    assert str(check_url("http://127.0.0.1:8080/x", policy=policy, allow_http=True)) == "http://127.0.0.1:8080/x"
    assert str(check_url("http://localhost:80/", policy=policy, allow_http=True)) == "http://localhost/"
    assert str(check_url("http://example.com/", policy=policy, allow_http=True)) == "http://example.com/"
    for url in ("http://8.8.8.8/", "http://10.0.0.1/"):
        with pytest.raises(ValueError, match="refused"):
            check_url(url, policy=policy, allow_http=True)
    with pytest.raises(ValueError, match="http"):
        check_url("http://127.0.0.1/", policy=policy)


hosts = st.one_of(
    st.integers(0, 2**32).map(str),
    st.integers(0, 2**32).map(hex),
    st.lists(st.integers(0, 300), min_size=1, max_size=5).map(lambda parts: ".".join(map(str, parts))),
    st.ip_addresses(v=6).map(lambda address: f"[{address}]"),
    st.from_regex(r"[a-z0-9_.%-]{1,20}", fullmatch=True),
    st.text(max_size=12),
)


@given(st.sampled_from(["https://", "http://", "HTTPS://"]), hosts, st.text(max_size=10))
def test_the_canonical_spelling_is_a_fixed_point(scheme: str, host: str, rest: str) -> None:
    """Whatever is accepted is accepted again as it was spelt, unchanged, and is plain ASCII."""
    try:
        once = parse_url(f"{scheme}{host}/{rest}", allow_http=True)
    except ValueError:
        return
    assert str(parse_url(str(once), allow_http=True)) == str(once)
    assert str(once).isascii()
    assert once.host
    assert not once.userinfo


@given(st.integers(0, 2**32 - 1), st.sampled_from(["{}", "0x{:x}", "0{:o}", "0X{:X}"]))
def test_every_spelling_of_a_number_is_the_address_that_it_is(value: int, spelling: str) -> None:
    """Decimal, hexadecimal and octal numbers come out as the address that the system's own resolver makes of them."""
    if spelling == "0{:o}" and value == 0:
        return
    assert parse_url(f"https://{spelling.format(value)}/").host == str(ipaddress.IPv4Address(value))
