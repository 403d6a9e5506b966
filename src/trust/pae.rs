//! DSSE's pre-authentication encoding: type and payload with their lengths, so that neither can
//! run over into the other.

/// `"DSSEv1 " len(type) " " type " " len(payload) " " payload`: the bytes that are signed.
///
/// # Source
/// secure-systems-lab/dsse, protocol.md, version 1.
pub fn pae(payload_type: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {payload_type} {} ", payload_type.len(), payload.len());
    [head.as_bytes(), payload].concat()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_published_example_comes_out() {
        let bytes = super::pae("http://example.com/HelloWorld", b"hello world");
        assert_eq!(bytes, b"DSSEv1 29 http://example.com/HelloWorld 11 hello world");
    }
}
