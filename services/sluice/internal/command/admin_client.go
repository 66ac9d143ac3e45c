package command

import (
	"cmp"
	"context"
	"crypto/elliptic"
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

func (a *app) client() *cobra.Command {
	cmd := parent("client", "Manage the clients of the token service",
		`Manage the clients that are registered with the token service (docs/auth.md). The commands use Redis: --redis,
SLUICE_REDIS_URL, or the content of the file SLUICE_REDIS_URL_FILE. A change applies to the next token; existing tokens
stay valid for up to five minutes. Clients in the token service's own file are not listed; if the file has a client of
the same id, the file takes precedence.`,
		a.clientRegister(), a.clientUpdate(), a.clientList(), a.clientRotateSecret(), a.clientKeygen(),
		a.withJSON(a.onClient(&cobra.Command{
			Use:   "show --id ID",
			Short: "Show a client",
			Long:  `Show a client: its scopes, and the ids of its keys or the URL of its key set. Secrets cannot be shown.`,
		}, func(ctx context.Context, store *authstore.Store, id string) error {
			client, _, err := readClient(ctx, store, id)
			if err != nil {
				return err
			}
			return a.show(clientJSON(client), clientRows(clientJSON(client)))
		})),
		a.withYes(a.onClient(&cobra.Command{
			Use:   "remove --id ID",
			Short: "Remove a client",
			Long: `Remove a client: it gets no more tokens. The command asks for confirmation unless --yes is given, and records the
change in the audit log if --audit-log or SLUICE_AUDIT_LOG names one.`,
		}, func(ctx context.Context, store *authstore.Store, id string) error {
			if err := a.confirm("Remove the client " + id + "? It gets no more tokens, and must be registered again."); err != nil {
				return err
			}
			return a.recorded("removal of client "+id, func() (string, error) {
				return "removed client " + id + "\n", ofClient(id, store.RemoveClient(ctx, id))
			})
		})))
	cmd.PersistentFlags().StringVar(&a.flags.redis, "redis", "", "URL of Redis; default: SLUICE_REDIS_URL")
	return cmd
}

func (a *app) withClients(work func(store *authstore.Store) error) (err error) {
	url, err := a.redisURL()
	if err != nil {
		return err
	}
	roots, err := a.roots()
	if err != nil {
		return err
	}
	store, err := authstore.Open(url, roots, nil)
	if err != nil {
		return a.wrongRedis(err)
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	return work(store)
}

func (a *app) onClient(
	cmd *cobra.Command, work func(ctx context.Context, store *authstore.Store, id string) error,
) *cobra.Command {
	var id string
	cmd.Flags().StringVar(&id, "id", "", "the client's client_id")
	require(cmd, "id")
	cmd.RunE = a.run(func(ctx context.Context, _ []string) error {
		return a.withClients(func(store *authstore.Store) error { return work(ctx, store, id) })
	})
	return cmd
}

// clientOutput is a client as JSON, without its secret.
type clientOutput struct {
	ID      string   `json:"id"`
	Method  string   `json:"method"` // private_key_jwt or client_secret_basic
	JWKSURL string   `json:"jwksUrl,omitempty"`
	KIDs    []string `json:"kids,omitempty"` // of the registered keys
	Scope   string   `json:"scope"`
	Secret  string   `json:"secret,omitempty"` // only when just created
}

func clientJSON(c token.Client) clientOutput {
	output := clientOutput{ID: c.ID, Method: "private_key_jwt", JWKSURL: c.JWKSURL, Scope: c.Scope}
	if c.SecretHash != "" {
		output.Method = "client_secret_basic"
	}
	var set struct {
		Keys []struct {
			KID string `json:"kid"`
		} `json:"keys"`
	}
	if len(c.JWKS) > 0 && json.Unmarshal(c.JWKS, &set) == nil {
		for _, key := range set.Keys {
			output.KIDs = append(output.KIDs, key.KID)
		}
	}
	return output
}

func clientRows(clients ...clientOutput) []row {
	rows := []row{{"id", "method", "keys", "scope"}}
	for _, c := range clients {
		rows = append(rows, row{c.ID, c.Method, cmp.Or(strings.Join(c.KIDs, ","), c.JWKSURL, "-"), c.Scope})
	}
	return rows
}

func (a *app) clientRegister() *cobra.Command {
	var client token.Client
	var keysFile string
	var withSecret bool
	cmd := a.withJSON(a.onClient(&cobra.Command{
		Use:   "register --id ID --scope SCOPES (--jwks-file FILE | --jwks-url URL | --secret)",
		Short: "Register a client",
		Long: `Register a client with its key set, in a file or at a URL of the client, or with a secret. A secret is
generated and printed once; the token service accepts it only with SLUICE_AUTH_CLIENT_SECRET=true. Scopes must be read
scopes of the context system/; tokens have no others.`,
		Example: `  sluice admin client register --id research --jwks-file research.jwks.json \
    --scope 'system/Patient.rs system/Group.rs'`,
	}, func(ctx context.Context, store *authstore.Store, id string) (err error) {
		client.ID = id
		if keysFile != "" {
			if client.JWKS, err = readKeySet(keysFile); err != nil {
				return err
			}
		}
		secret := ""
		if withSecret {
			secret = token.NewSecret()
			client.SecretHash = token.HashSecret(secret)
		}
		if err := client.Check(); err != nil {
			return usageError{err}
		}
		record, err := client.Record()
		if err != nil {
			return err
		}
		err = a.recorded("registration of client "+id, func() (string, error) { return "", store.AddClient(ctx, id, record) })
		if errors.Is(err, export.ErrConflict) {
			return fmt.Errorf("client %s is already registered: change it with sluice admin client update", id)
		}
		if err != nil {
			return err
		}
		return a.printRegistered(client, secret)
	}))
	f := cmd.Flags()
	f.StringVar(&keysFile, "jwks-file", "", "file with the client's public keys, a JWKS")
	f.StringVar(&client.JWKSURL, "jwks-url", "", "URL of the client's public keys: https, or http on loopback")
	f.BoolVar(&withSecret, "secret", false, "generate a secret for HTTP Basic")
	f.StringVar(&client.Scope, "scope", "", "scopes, separated by spaces, such as 'system/*.rs'")
	require(cmd, "scope")
	cmd.MarkFlagsMutuallyExclusive("jwks-file", "jwks-url", "secret")
	cmd.MarkFlagsOneRequired("jwks-file", "jwks-url", "secret")
	return cmd
}

// printRegistered prints a registered client and its new secret, which cannot be read again.
func (a *app) printRegistered(client token.Client, secret string) error {
	switch {
	case a.flags.json:
		output := clientJSON(client)
		output.Secret = secret
		return a.printJSON(output)
	case secret != "":
		a.say("The secret of %s follows. It is not stored and cannot be shown again.\n", client.ID)
		return a.print(secret + "\n")
	}
	return a.print("registered client " + client.ID + "\n")
}

func (a *app) clientList() *cobra.Command {
	return a.withJSON(&cobra.Command{
		Use:   "list",
		Short: "List the clients",
		RunE: a.run(func(ctx context.Context, _ []string) error {
			return a.withClients(func(store *authstore.Store) error {
				list := []clientOutput{}
				err := store.Clients(ctx, func(id string, record []byte) error {
					client, err := token.ParseClient(record)
					if err != nil {
						return fmt.Errorf("client %s: %w", id, err)
					}
					list = append(list, clientJSON(client))
					return nil
				})
				if err != nil {
					return err
				}
				slices.SortFunc(list, func(a, b clientOutput) int { return strings.Compare(a.ID, b.ID) })
				return a.show(list, clientRows(list...))
			})
		}),
	})
}

func (a *app) clientRotateSecret() *cobra.Command {
	var keep bool
	cmd := a.withJSON(a.onClient(&cobra.Command{
		Use:   "rotate-secret --id ID",
		Short: "Replace the secret of a client",
		Long: `Generate a new secret for a client and print it once. The old secrets are invalid immediately. With --keep the
latest of them stays valid until the next rotation, so that the client can be changed over without an interruption.`,
	}, func(ctx context.Context, store *authstore.Store, id string) error {
		client, before, err := readClient(ctx, store, id)
		if err != nil {
			return err
		}
		if client.SecretHash == "" {
			return fmt.Errorf("client %s has keys, not a secret", id)
		}
		secret := token.NewSecret()
		client.MoreSecretHashes = nil
		if keep {
			client.MoreSecretHashes = []string{client.SecretHash}
		}
		client.SecretHash = token.HashSecret(secret)
		record, err := client.Record()
		if err != nil {
			return err
		}
		err = a.recorded("new secret of client "+id, func() (string, error) {
			return "", store.ReplaceClient(ctx, id, before, record)
		})
		if errors.Is(err, export.ErrConflict) {
			return fmt.Errorf("client %s was changed concurrently: try again", id)
		}
		if err != nil {
			return err
		}
		return a.printRegistered(client, secret)
	}))
	cmd.Flags().BoolVar(&keep, "keep", false, "keep the latest secret valid")
	return cmd
}

func (a *app) clientKeygen() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "keygen --out NAME",
		Short: "Generate a key pair for a client",
		Long: `Generate a P-384 key pair (ES384): NAME.key.json, the private key for the client, and NAME.jwks.json, the
public key set to register. Existing files are not replaced.`,
		RunE: a.run(func(context.Context, []string) error {
			private, public, err := token.NewKey(elliptic.P384())
			if err != nil {
				return err
			}
			keyFile, setFile := out+".key.json", out+".jwks.json"
			if err := writeNew(keyFile, private, 0o600); err != nil {
				return fmt.Errorf("write the private key: %w", err)
			}
			if err := writeNew(setFile, public, 0o644); err != nil {
				return errors.Join(fmt.Errorf("write the key set: %w", err), os.Remove(keyFile))
			}
			return a.print(fmt.Sprintf("private key: %s\nkey set to register: %s\n", keyFile, setFile))
		}),
	}
	cmd.Flags().StringVar(&out, "out", "", "path prefix of both files")
	require(cmd, "out")
	return cmd
}

func readClient(ctx context.Context, store *authstore.Store, id string) (token.Client, []byte, error) {
	record, err := store.Client(ctx, id)
	if err != nil {
		return token.Client{}, nil, ofClient(id, err)
	}
	client, err := token.ParseClient(record)
	if err != nil {
		return token.Client{}, nil, fmt.Errorf("client %s: %w", id, err)
	}
	return client, record, nil
}

func ofClient(id string, err error) error {
	if errors.Is(err, export.ErrNotFound) {
		return fmt.Errorf("client %s is not registered", id)
	}
	return err
}
