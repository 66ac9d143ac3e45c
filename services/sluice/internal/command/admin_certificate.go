package command

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
)

// certificateFiles are the files of admin certificate, in the order of writing.
var certificateFiles = []struct {
	name string
	mode fs.FileMode
}{{"ca.pem", 0o644}, {"tls.pem", 0o644}, {"tls.key", 0o600}}

// certificate is for trials on one machine. The authority's key is never written, so the authority can never issue a
// second certificate.
func (a *app) certificate() *cobra.Command {
	var out string
	var names []string
	var valid time.Duration
	cmd := &cobra.Command{
		Use:   "certificate --out DIR --name NAME...",
		Short: "Generate a TLS certificate for a trial, with its own authority",
		Long: `Generate a key (tls.key) and a certificate (tls.pem) for the listeners of a trial installation, and the
certificate of the issuing authority (ca.pem), which clients must trust. The key of the authority is discarded. Existing
files are not replaced. For production, use your usual certificate authority (docs/tls.md).`,
		Example: `  sluice admin certificate --out tls --name localhost --name 127.0.0.1`,
		RunE: a.run(func(context.Context, []string) error {
			if valid <= 0 {
				return usage("--valid must be positive")
			}
			made, err := makeCertificate(names, time.Now(), valid)
			if err != nil {
				return err
			}
			for n, file := range certificateFiles {
				if err := writeNew(filepath.Join(out, file.name), made[n], file.mode); err != nil {
					for _, written := range certificateFiles[:n] {
						err = errors.Join(err, os.Remove(filepath.Join(out, written.name)))
					}
					return fmt.Errorf("write %s: %w", file.name, err)
				}
			}
			return a.print(fmt.Sprintf("certificate: %s\n", filepath.Join(out, "tls.pem")))
		}),
	}
	f := cmd.Flags()
	f.StringVar(&out, "out", "", "folder for the three files")
	f.StringSliceVar(&names, "name", nil, "DNS names and IP addresses of the servers")
	f.DurationVar(&valid, "valid", 365*24*time.Hour, "validity of the certificate")
	require(cmd, "out", "name")
	return cmd
}

// makeCertificate returns three PEM texts: the certificate of a new authority, a certificate that the authority issued for
// the names, and the key of that certificate.
func makeCertificate(names []string, now time.Time, valid time.Duration) ([3][]byte, error) {
	var made [3][]byte
	// Certificates are valid from an hour earlier, to tolerate slow clocks.
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Sluice trial authority"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(valid),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, KeyUsage: x509.KeyUsageCertSign,
	}
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "Sluice trial"},
		NotBefore: authority.NotBefore, NotAfter: authority.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			server.IPAddresses = append(server.IPAddresses, ip)
		} else {
			server.DNSNames = append(server.DNSNames, name)
		}
	}
	var keys [2]*ecdsa.PrivateKey
	for i, template := range []*x509.Certificate{authority, server} {
		var err error
		if keys[i], err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return made, fmt.Errorf("generate the key of the %s: %w", template.Subject.CommonName, err)
		}
		issued, err := x509.CreateCertificate(rand.Reader, template, authority, keys[i].Public(), keys[0])
		if err != nil {
			return made, fmt.Errorf("issue the certificate of the %s: %w", template.Subject.CommonName, err)
		}
		made[i] = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issued})
	}
	private, err := x509.MarshalPKCS8PrivateKey(keys[1])
	if err != nil {
		return made, fmt.Errorf("encode the key: %w", err)
	}
	made[2] = pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
	return made, nil
}
