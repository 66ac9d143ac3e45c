package command

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/authstore"
	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// clientChange is what the flags of update change.
type clientChange struct {
	keysFile, addFile, removeKey, keysURL, scope string
}

func (a *app) clientUpdate() *cobra.Command {
	var change clientChange
	cmd := a.withJSON(a.onClient(&cobra.Command{
		Use:   "update --id ID [--add-jwks-file FILE] [--remove-key KID] [--jwks-file FILE | --jwks-url URL] [--scope SCOPES]",
		Short: "Change the keys or the scopes of a client",
		Long: `Change the keys or the scopes of a client in one step. There is no moment at which the client is not registered.

To rotate a key without a gap: add the new public key with --add-jwks-file, let the client sign with it, then remove the
old one with --remove-key. Until then both are valid. --jwks-file and --jwks-url replace all keys. A client with a secret
has no keys: see rotate-secret.`,
		Example: `  sluice admin client update --id research --add-jwks-file research-2.jwks.json
  sluice admin client show --id research                     # the ids of both keys
  sluice admin client update --id research --remove-key KID`,
	}, func(ctx context.Context, store *authstore.Store, id string) error {
		client, before, err := readClient(ctx, store, id)
		if err != nil {
			return err
		}
		if err := change.apply(&client); err != nil {
			return err
		}
		if err := client.Check(); err != nil {
			return usageError{err}
		}
		record, err := client.Record()
		if err != nil {
			return err
		}
		err = a.recorded("change of client "+id, func() (string, error) {
			return "", store.ReplaceClient(ctx, id, before, record)
		})
		if errors.Is(err, export.ErrConflict) {
			return fmt.Errorf("client %s was changed concurrently: try again", id)
		}
		if err != nil {
			return err
		}
		if a.flags.json {
			return a.printJSON(clientJSON(client))
		}
		return a.print("changed client " + client.ID + "\n")
	}))
	f := cmd.Flags()
	f.StringVar(&change.addFile, "add-jwks-file", "", "file with further public keys of the client, a JWKS")
	f.StringVar(&change.removeKey, "remove-key", "", "id (kid) of a key to remove")
	f.StringVar(&change.keysFile, "jwks-file", "", "file with the public keys that replace all others, a JWKS")
	f.StringVar(&change.keysURL, "jwks-url", "", "URL of the client's public keys, which replaces all others")
	f.StringVar(&change.scope, "scope", "", "scopes that replace the others")
	for _, other := range []string{"add-jwks-file", "remove-key"} {
		cmd.MarkFlagsMutuallyExclusive("jwks-file", "jwks-url", other)
	}
	cmd.MarkFlagsOneRequired("add-jwks-file", "remove-key", "jwks-file", "jwks-url", "scope")
	return cmd
}

func (c clientChange) apply(client *token.Client) (err error) {
	if c.scope != "" {
		client.Scope = c.scope
	}
	if c == (clientChange{scope: c.scope}) {
		return nil
	}
	if client.SecretHash != "" {
		return fmt.Errorf("client %s has a secret, not keys: see rotate-secret", client.ID)
	}
	switch {
	case c.keysURL != "":
		client.JWKSURL, client.JWKS = c.keysURL, nil
		return nil
	case c.keysFile != "":
		client.JWKSURL = ""
		client.JWKS, err = readKeySet(c.keysFile)
		return err
	case client.JWKSURL != "":
		return fmt.Errorf("client %s publishes its keys at a URL: change them there", client.ID)
	}
	if c.addFile != "" {
		more, err := readKeySet(c.addFile)
		if err != nil {
			return err
		}
		if client.JWKS, err = joinKeySets(client.JWKS, more); err != nil {
			return err
		}
	}
	if c.removeKey != "" {
		client.JWKS, err = withoutKey(client.JWKS, c.removeKey)
	}
	return err
}

// keySet is a JWKS whose keys are kept as they are.
type keySet struct {
	Keys []json.RawMessage `json:"keys"`
}

// kid returns the id of a key, "" for none.
func kid(key json.RawMessage) string {
	var named struct {
		KID string `json:"kid"`
	}
	_ = json.Unmarshal(key, &named) // Client.Check reports a malformed key
	return named.KID
}

// joinKeySets adds the keys of the second set that the first does not have. Client.Check refuses two keys with one id.
func joinKeySets(first, second []byte) ([]byte, error) {
	var all, more keySet
	if err := errors.Join(json.Unmarshal(first, &all), json.Unmarshal(second, &more)); err != nil {
		return nil, errors.New("JWKS: not a JSON Web Key Set")
	}
	known := map[string]bool{}
	for _, key := range all.Keys {
		known[compact(key)] = true
	}
	for _, key := range more.Keys {
		if !known[compact(key)] {
			all.Keys = append(all.Keys, key)
		}
	}
	return json.Marshal(all)
}

// compact returns the text of a key without blanks. A stored key has none.
func compact(key json.RawMessage) string {
	var text bytes.Buffer
	_ = json.Compact(&text, key) // the key was decoded from valid JSON
	return text.String()
}

func withoutKey(set []byte, id string) ([]byte, error) {
	var all keySet
	if err := json.Unmarshal(set, &all); err != nil {
		return nil, errors.New("JWKS: not a JSON Web Key Set")
	}
	before := len(all.Keys)
	all.Keys = slices.DeleteFunc(all.Keys, func(key json.RawMessage) bool { return kid(key) == id })
	switch len(all.Keys) {
	case before:
		return nil, fmt.Errorf("the client has no key with the id %q", id)
	case 0:
		return nil, errors.New("this is the client's only key: add another first")
	}
	return json.Marshal(all)
}

// readKeySet reads a file with public keys. A private key, as of keygen, gets the name of the file to give instead.
func readKeySet(file string) ([]byte, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the key set: %w", err)
	}
	var key struct {
		Kind string          `json:"kty"`
		D    json.RawMessage `json:"d"`
	}
	pem := strings.Contains(string(content), "PRIVATE KEY-----")
	if !pem && (json.Unmarshal(content, &key) != nil || key.Kind == "" || len(key.D) == 0) {
		return content, nil //nolint:nilerr // the registration refuses what is not a key set
	}
	instead := "register its public key set (JWKS)"
	if name, ok := strings.CutSuffix(file, ".key.json"); ok {
		instead = "register " + name + ".jwks.json"
	}
	return nil, usage("%s is a private key, which only the client may have: %s", file, instead)
}
