//! Certificates, good and bad, and an authority that some clients trust.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, OnceLock};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType,
    date_time_ymd,
};
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::fault::Certificate;

type Authority = CertifiedIssuer<'static, KeyPair>;

/// The authority that signs all certificates that are not self-signed.
fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(|| {
        let mut params = CertificateParams::new([]).unwrap();
        // Told apart from the issuer of a certificate that is self-signed.
        params
            .distinguished_name
            .push(DnType::CommonName, "authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    })
}

/// Its certificate, for clients to trust.
pub(crate) fn root() -> CertificateDer<'static> {
    authority().der().clone()
}

/// The same as text.
pub(crate) fn root_pem() -> String {
    authority().pem()
}

/// What a server needs that shows this certificate.
pub(crate) fn server(certificate: Certificate) -> Arc<ServerConfig> {
    static ALL: OnceLock<Vec<(Certificate, Arc<ServerConfig>)>> = OnceLock::new();
    let all = ALL.get_or_init(|| {
        use Certificate::{Expired, Good, OfAnother, SelfSigned};
        let all = [Good, SelfSigned, OfAnother, Expired];
        all.map(|kind| (kind, Arc::new(config(kind)))).to_vec()
    });
    let found = all.iter().find(|(kind, _)| *kind == certificate);
    Arc::clone(&found.unwrap().1)
}

fn config(certificate: Certificate) -> ServerConfig {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new([]).unwrap();
    params.subject_alt_names = match certificate {
        Certificate::OfAnother => vec![SanType::DnsName("another.example".try_into().unwrap())],
        _ => vec![SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST))],
    };
    if certificate == Certificate::Expired {
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2021, 1, 1);
    }
    let signed = match certificate {
        Certificate::SelfSigned => params.self_signed(&key),
        _ => params.signed_by(&key, authority()),
    };
    let chain = vec![signed.unwrap().der().clone()];
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap()
}
