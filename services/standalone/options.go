package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/platform/buildinfo"
	"github.com/sluice-fhir/sluice/pkg/platform/certs"
	"github.com/sluice-fhir/sluice/pkg/platform/httpserver"
	"github.com/sluice-fhir/sluice/services/config"
)

type options struct {
	data      string        // folder of NDJSON; empty: a generated sample
	bases     []string      // further bases of local references
	addr      string        // public listener
	state     string        // keys, objects, sample data and quickstart.json
	baseURL   string        // public FHIR base; empty: from the listener
	access    string        // access file; empty: the demo subject may export everything
	clients   string        // file of registered clients; empty: there are none
	retention time.Duration // of finished jobs
	encrypt   bool          // encrypts exported files, with a key of the state folder
	tlsCert   string        // certificate (PEM); empty: plain HTTP
	tlsKey    string        // its key
	verbose   bool

	proxies []netip.Prefix // whose X-Forwarded-For the token service trusts
	command string         // path of the command line sluice, for the printed lines
}

// duration is a flag whose error names what a duration needs.
type duration time.Duration

func (d *duration) String() string { return time.Duration(*d).String() }

func (d *duration) Set(text string) error {
	value, err := time.ParseDuration(text)
	if err != nil {
		return errors.New("a duration needs a number and a unit, such as 168h")
	}
	*d = duration(value)
	return nil
}

// about is the head of the help.
const about = `Usage: standalone --state DIR [flags]

All services of Sluice in one process, for a laptop: the API, a token service, workers, the operator's page, an embedded
Redis and an embedded object store. It serves the data of a folder, or a generated sample, and prints how to export it.
Exports are kept in the state folder over a restart. It is not for production: see docs/containers.md, docs/systemd.md
and docs/kubernetes.md.

Flags:
`

// parse reads the command line. The error is flag.ErrHelp after it has printed the help or the version.
func parse(args []string, stdout io.Writer) (options, error) {
	var o options
	flags := flag.NewFlagSet("standalone", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // the error is returned
	flags.StringVar(&o.data, "data", "", "folder of NDJSON files or Bundles (docs/data.md); default: a generated sample")
	flags.Func("data-base", "base URL of absolute references in the data; repeatable; in addition to SLUICE_DATA_BASES "+
		"(separated by commas) and the server's own base",
		func(base string) error {
			o.bases = append(o.bases, base)
			_, err := fhir.NewBases(base)
			return err
		})
	flags.StringVar(&o.addr, "addr", "127.0.0.1:8080", "host:port of the listener; port 0 picks a free port")
	flags.StringVar(&o.state, "state", "", "folder for keys, exported files and quickstart.json (required)")
	flags.StringVar(&o.baseURL, "base-url", "", "public FHIR base URL, such as https://host/fhir; default http(s)://ADDR/fhir")
	flags.StringVar(&o.access, "access", "", "access file (YAML); default: the demo subject may export everything")
	flags.StringVar(&o.clients, "clients", "",
		"file of clients of /auth/token (YAML, docs/auth.md); default: none")
	o.retention = 168 * time.Hour
	flags.Var((*duration)(&o.retention), "retention", "how long finished exports are kept, such as 36h")
	flags.BoolVar(&o.encrypt, "encrypt", false, "encrypt exported files (docs/encryption.md)")
	flags.StringVar(&o.tlsCert, "tls-cert", "", "certificate (PEM file) for TLS; reloaded when it changes")
	flags.StringVar(&o.tlsKey, "tls-key", "", "key of the certificate (PEM file)")
	flags.Func("trusted-proxy",
		"address or network of a proxy; /auth/token takes the client's address from its X-Forwarded-For; repeatable",
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
	version := flags.Bool("version", false, "print the version and exit")
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		_, _ = io.WriteString(stdout, about)
		flags.VisitAll(func(f *flag.Flag) {
			text := f.Usage
			if f.DefValue != "" && f.DefValue != "false" {
				text += " (default " + f.DefValue + ")"
			}
			_, _ = fmt.Fprintf(stdout, "  --%-13s %s\n", f.Name, text)
		})
		return options{}, err
	case err != nil:
		return options{}, usageError{fmt.Errorf("%w: see standalone --help", err)}
	case *version:
		_, _ = fmt.Fprintln(stdout, "standalone", buildinfo.Of())
		return options{}, flag.ErrHelp
	}
	var errs []error
	for base := range strings.SplitSeq(os.Getenv("SLUICE_DATA_BASES"), ",") {
		if base = strings.TrimSpace(base); base == "" {
			continue
		}
		o.bases = append(o.bases, base)
		if _, err := fhir.NewBases(base); err != nil {
			errs = append(errs, fmt.Errorf("SLUICE_DATA_BASES: %w", err))
		}
	}
	if flags.NArg() > 0 {
		errs = append(errs, fmt.Errorf("unexpected argument %q", flags.Arg(0)))
	}
	if o.state == "" {
		errs = append(errs, errors.New("--state is required"))
	}
	if o.retention <= 0 {
		errs = append(errs, fmt.Errorf("--retention must be positive, not %s", o.retention))
	}
	if (o.tlsCert == "") != (o.tlsKey == "") {
		errs = append(errs, errors.New("--tls-cert and --tls-key must be set together"))
	}
	if o.baseURL != "" {
		if _, err := config.BaseURL(o.baseURL); err != nil {
			errs = append(errs, fmt.Errorf("--base-url: %w", err))
		}
	}
	if host, _, err := net.SplitHostPort(o.addr); err != nil {
		errs = append(errs, fmt.Errorf("--addr must be host:port, such as 127.0.0.1:8080, not %q", o.addr))
	} else if ip, err := netip.ParseAddr(host); o.baseURL == "" && (host == "" || err == nil && ip.IsUnspecified()) {
		errs = append(errs,
			fmt.Errorf("--addr %s is every address of this machine: --base-url must be the URL that clients use", o.addr))
	}
	// Before the working directory changes.
	o.command = filepath.Join(filepath.Dir(os.Args[0]), "sluice")
	if _, err := os.Stat(o.command); err != nil {
		o.command = "bin/sluice"
	} else if o.command == "sluice" { // a shell looks for it elsewhere
		o.command = "./sluice"
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
	if len(errs) > 0 {
		return o, usageError{errors.Join(errs...)}
	}
	return o, nil
}

// usageError is a command line, or a variable, that is not valid.
type usageError struct{ error }

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
