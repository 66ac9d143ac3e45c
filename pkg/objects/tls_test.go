package objects_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/objects"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// A store with an invalid certificate receives no requests. A proxy in front of MinIO presents certificates with which
// MinIO would not start.
func TestTLS(t *testing.T) {
	authority := testenv.NewAuthority(t)
	valid := time.Now().Add(time.Hour)
	good := testenv.SecureObjectStore(t, authority.Issue(valid, "127.0.0.1"))
	plain := testenv.ObjectStore(t)
	through := func(certificate testenv.Certificate) testenv.S3 {
		target, err := url.Parse(plain.Endpoint)
		must(t, err)
		proxy := httputil.NewSingleHostReverseProxy(target)
		proxy.Transport = &http.Transport{DisableKeepAlives: true}
		server := httptest.NewUnstartedServer(proxy)
		server.TLS = &tls.Config{Certificates: []tls.Certificate{certificate.TLS(t)}}
		server.Config.ErrorLog = log.New(io.Discard, "", 0) // refused handshakes
		server.StartTLS()
		t.Cleanup(server.Close)
		place := plain
		place.Endpoint = server.URL
		return place
	}
	to := func(place testenv.S3, endpoint string) testenv.S3 {
		place.Endpoint = endpoint
		return place
	}
	for name, row := range map[string]struct {
		place testenv.S3
		roots *x509.CertPool
		want  string // of the error; "": none
	}{
		"a server that is known": {good, authority.Pool(), ""},
		"a proxy that is known":  {through(authority.Issue(valid, "127.0.0.1")), authority.Pool(), ""},
		"another authority":      {good, testenv.NewAuthority(t).Pool(), "unknown authority"},
		"the system's alone":     {good, nil, "unknown authority"},
		"another host":           {through(authority.Issue(valid, "s3.example.org")), authority.Pool(), "doesn't contain any IP SANs"},
		"expired":                {through(authority.Issue(time.Now().Add(-time.Hour), "127.0.0.1")), authority.Pool(), "expired"},
		"plain to TLS":           {to(good, strings.Replace(good.Endpoint, "https", "http", 1)), authority.Pool(), ""},
		"TLS to plain":           {to(plain, strings.Replace(plain.Endpoint, "http", "https", 1)), authority.Pool(), "HTTP response to HTTPS client"},
	} {
		store, err := objects.Open(objects.Config{
			Endpoint: row.place.Endpoint, AccessKey: row.place.AccessKey, SecretKey: row.place.SecretKey,
			Bucket: row.place.Bucket, Roots: row.roots,
		})
		must(t, err)
		refused := row.want != "" || name == "plain to TLS"
		err = errors.Join(store.EnsureBucket(t.Context()), store.Check(t.Context()))
		if !refused && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if refused && (!errors.Is(err, export.ErrUnavailable) || !strings.Contains(err.Error(), row.want)) {
			t.Errorf("%s: %v, want an outage with the text %q", name, err, row.want)
		}
		store.Close()
	}
}
