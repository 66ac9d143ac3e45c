package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-fhir/sluice/pkg/platform/certs"
	"github.com/sluice-fhir/sluice/pkg/platform/httpserver"
	"github.com/sluice-fhir/sluice/services/config"
)

type options struct {
	data      string        // folder of NDJSON; empty: a generated sample
	addr      string        // public listener
	state     string        // keys, objects, sample data and quickstart.json
	baseURL   string        // public FHIR base; empty: from the listener
	access    string        // access file; empty: the demo subject may export everything
	clients   string        // file of registered clients; empty: there are none
	retention time.Duration // of finished jobs
	encrypt   bool          // encrypts exported files, with keys that end with the process, as jobs do
	tlsCert   string        // certificate (PEM); empty: plain HTTP
	tlsKey    string        // its key
	verbose   bool

	proxies []netip.Prefix // whose X-Forwarded-For the token service trusts
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("standalone", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&o.data, "data", "", "folder of .ndjson and .ndjson.gz files; default: a generated sample")
	flags.StringVar(&o.addr, "addr", "127.0.0.1:8080", "host:port of the listener; port 0 picks a free port")
	flags.StringVar(&o.state, "state", "", "folder for keys, exported files and quickstart.json (required)")
	flags.StringVar(&o.baseURL, "base-url", "", "public FHIR base URL, such as https://host/fhir; default http(s)://ADDR/fhir")
	flags.StringVar(&o.access, "access", "", "access file (YAML); default: the demo subject may export everything")
	flags.StringVar(&o.clients, "clients", "",
		"file of clients of /auth/token (YAML, docs/auth.md); default: none")
	flags.DurationVar(&o.retention, "retention", 168*time.Hour, "how long finished exports are kept")
	flags.BoolVar(&o.encrypt, "encrypt", false, "encrypt exported files (docs/encryption.md)")
	flags.StringVar(&o.tlsCert, "tls-cert", "", "certificate (PEM file) for TLS; reloaded when it changes")
	flags.StringVar(&o.tlsKey, "tls-key", "", "key of the certificate (PEM file)")
	flags.Func("trusted-proxy", "address or network of a proxy whose X-Forwarded-For /auth/token trusts; repeatable",
		func(list string) error {
			for text := range strings.SplitSeq(list, ",") {
				network, err := netip.ParsePrefix(text)
				if address, addressErr := netip.ParseAddr(text); addressErr == nil {
					network, err = address.Prefix(address.BitLen())
				}
				if err != nil {
					return errors.New("neither an address nor a network such as 10.0.0.0/8")
				}
				o.proxies = append(o.proxies, network)
			}
			return nil
		})
	flags.BoolVar(&o.verbose, "verbose", false, "log requests and units, not only warnings")
	if err := flags.Parse(args); err != nil {
		return options{}, err
	}
	var errs []error
	if flags.NArg() > 0 {
		errs = append(errs, fmt.Errorf("unexpected argument %q", flags.Arg(0)))
	}
	if o.state == "" {
		errs = append(errs, errors.New("--state is required"))
	}
	if o.retention <= 0 {
		errs = append(errs, errors.New("--retention must be positive"))
	}
	if (o.tlsCert == "") != (o.tlsKey == "") {
		errs = append(errs, errors.New("--tls-cert and --tls-key must be set together"))
	}
	if o.baseURL != "" {
		if _, err := config.BaseURL(o.baseURL); err != nil {
			errs = append(errs, fmt.Errorf("--base-url: %w", err))
		}
	}
	// The embedded object store changes the working directory, so paths must be absolute.
	for _, path := range []*string{&o.data, &o.state, &o.access, &o.clients, &o.tlsCert, &o.tlsKey} {
		if *path == "" {
			continue
		}
		absolute, err := filepath.Abs(*path)
		if err != nil {
			errs = append(errs, err)
		}
		*path = absolute
	}
	return o, errors.Join(errs...)
}

// local reports whether a listener serves metrics and the operator's page: on a loopback address without a configured base
// URL. With one there may be a proxy, through which every client appears local.
func (o options) local(addr net.Addr) bool { return o.baseURL == "" && config.Loopback(addr) }

// serving returns the options and the scheme of the listener.
func (o options) serving(log *slog.Logger, registry prometheus.Registerer) (httpserver.Options, string, error) {
	options := httpserver.Options{Log: log}
	if o.tlsCert == "" {
		return options, "http", nil
	}
	certificate, err := certs.Open(o.tlsCert, o.tlsKey, log, time.Now)
	if err != nil {
		return options, "", fmt.Errorf("--tls-cert and --tls-key: %w", err)
	}
	if err := certificate.Register(registry, "public"); err != nil {
		return options, "", fmt.Errorf("metrics of the certificate: %w", err)
	}
	options.TLS = certs.ServerTLS(certificate, nil)
	return options, "https", nil
}
