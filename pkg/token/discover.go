package token

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
)

// discovered is a key set that its issuer's configuration document points to. The document is read again with each
// key set: an issuer may move its keys.
type discovered struct {
	issuer string // the issuer's name, a URL
	client *http.Client
}

func (d *discovered) read(ctx context.Context) ([]byte, error) {
	document, err := (&remote{
		// A slash at the end goes before the path is added (OpenID Connect Discovery 4.1).
		url: strings.TrimSuffix(d.issuer, "/") + "/.well-known/openid-configuration", client: d.client,
	}).read(ctx)
	if err != nil {
		return nil, fmt.Errorf("discovery document: %w", err)
	}
	keys, err := readDiscovery(document, d.issuer)
	if err != nil {
		return nil, fmt.Errorf("discovery document: %w", err)
	}
	return (&remote{url: keys, client: d.client}).read(ctx)
}

// changed cannot be told without asking, which is what a fetch is for.
func (d *discovered) changed() answer { return unknown }

// readDiscovery returns the jwks_uri of a document that is the issuer's own: its issuer member must be the name, byte
// for byte (OpenID Connect Discovery 4.3), or anybody's document would do. A document that came over the network must
// not point to this machine: http on loopback is only for an issuer that is there too.
func readDiscovery(document []byte, issuer string) (string, error) {
	all, err := readObject(document)
	if err != nil {
		return "", errors.New("not one JSON object with distinct members")
	}
	if name, ok := text(all["issuer"]); !ok || name != issuer {
		return "", errors.New("its issuer is another one")
	}
	keys, ok := text(all["jwks_uri"])
	if !ok {
		return "", errors.New("no jwks_uri")
	}
	if strings.HasPrefix(issuer, "https:") && !strings.HasPrefix(keys, "https:") {
		return "", errors.New("jwks_uri: wants https")
	}
	return keys, checkURL("jwks_uri", keys)
}
