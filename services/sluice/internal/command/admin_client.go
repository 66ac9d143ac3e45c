package command

import (
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

// clientFlags are the flags of the commands for registered clients.
type clientFlags struct {
	*adminFlags
	redis, id string
}

func (a *app) client(admin *adminFlags) *cobra.Command {
	flags := clientFlags{adminFlags: admin}
	cmd := parent("client", "Manage the clients of the token service",
		`Manage the clients that are registered with the token service (docs/auth.md). The commands use Redis: --redis,
SLUICE_REDIS_URL, or the content of the file SLUICE_REDIS_URL_FILE. A change applies to the next token; existing tokens
stay valid for up to five minutes. Clients in the token service's own file are not listed; if the file has a client of
the same id, the file takes precedence.`,
		a.clientRegister(&flags), a.clientList(&flags), a.clientShow(&flags), a.clientRemove(&flags),
		a.clientRotateSecret(&flags), a.clientKeygen())
	cmd.PersistentFlags().StringVar(&flags.redis, "redis", "", "URL of Redis; default: SLUICE_REDIS_URL")
	return cmd
}

func (f *clientFlags) named(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&f.id, "id", "", "the client's client_id")
	require(cmd, "id")
	return cmd
}

// withClients runs the work on the clients in Redis.
func (f *clientFlags) withClients(work func(store *authstore.Store) error) (err error) {
	url, err := urlOf(f.redis, "--redis", "SLUICE_REDIS_URL")
	if err != nil {
		return err
	}
	store, err := authstore.Open(url, nil, nil)
	if err != nil {
		return usageError{err}
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	return work(store)
}

// clientOutput is a client as JSON, without its secret.
type clientOutput struct {
	ID      string   `json:"id"`
	Method  string   `json:"method"` // private_key_jwt or client_secret_basic
	JWKSURL string   `json:"jwks_url,omitempty"`
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

var clientHeading = []string{"id", "method", "keys", "scope"}

func clientRow(c clientOutput) []string {
	keys := c.JWKSURL
	if len(c.KIDs) > 0 {
		keys = strings.Join(c.KIDs, ",")
	}
	if keys == "" {
		keys = "-"
	}
	return []string{c.ID, c.Method, keys, c.Scope}
}

func (a *app) printClients(flags *clientFlags, list []clientOutput, one bool) error {
	switch {
	case flags.json && one:
		return a.printJSON(list[0])
	case flags.json:
		return a.printJSON(list)
	}
	rows := [][]string{clientHeading}
	for _, output := range list {
		rows = append(rows, clientRow(output))
	}
	return a.printColumns(rows)
}

func (a *app) clientRegister(flags *clientFlags) *cobra.Command {
	var client token.Client
	var keysFile string
	var withSecret bool
	cmd := withJSON(flags.named(&cobra.Command{
		Use:   "register --id ID --scope SCOPES (--jwks-file FILE | --jwks-url URL | --secret)",
		Short: "Register a client",
		Long: `Register a client with its key set, in a file or at a URL of the client, or with a secret. A secret is
generated and printed once; the token service accepts it only with SLUICE_AUTH_CLIENT_SECRET=true. Scopes must be read
scopes of the context system/; tokens have no others.`,
		Example: `  sluice admin client register --id research --jwks-file research.jwks.json \
    --scope 'system/Patient.rs system/Group.rs'`,
		Args: cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			client.ID = flags.id
			var err error
			if keysFile != "" {
				if client.JWKS, err = os.ReadFile(keysFile); err != nil {
					return fmt.Errorf("read the key set: %w", err)
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
			return flags.withClients(func(store *authstore.Store) error {
				err := recorded(flags.adminFlags, "registration of client "+client.ID, func() error {
					return store.AddClient(ctx, client.ID, record)
				})
				if errors.Is(err, export.ErrConflict) {
					return fmt.Errorf("client %s is already registered: remove it first", client.ID)
				}
				if err != nil {
					return err
				}
				return a.printRegistered(flags, client, secret)
			})
		}),
	}), flags.adminFlags)
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
func (a *app) printRegistered(flags *clientFlags, client token.Client, secret string) error {
	output := clientJSON(client)
	output.Secret = secret
	if flags.json {
		return a.printJSON(output)
	}
	if secret != "" {
		a.say("The secret of %s follows. It is not stored and cannot be shown again.\n", client.ID)
		return a.print(secret + "\n")
	}
	return a.print("registered client " + client.ID + "\n")
}

func (a *app) clientList(flags *clientFlags) *cobra.Command {
	return withJSON(&cobra.Command{
		Use:   "list",
		Short: "List the clients",
		Args:  cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			return flags.withClients(func(store *authstore.Store) error {
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
				return a.printClients(flags, list, false)
			})
		}),
	}, flags.adminFlags)
}

func (a *app) clientShow(flags *clientFlags) *cobra.Command {
	return withJSON(flags.named(&cobra.Command{
		Use:   "show --id ID",
		Short: "Show a client",
		Args:  cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			return flags.withClients(func(store *authstore.Store) error {
				client, _, err := readClient(ctx, store, flags.id)
				if err != nil {
					return err
				}
				return a.printClients(flags, []clientOutput{clientJSON(client)}, true)
			})
		}),
	}), flags.adminFlags)
}

func (a *app) clientRemove(flags *clientFlags) *cobra.Command {
	return flags.named(&cobra.Command{
		Use:   "remove --id ID",
		Short: "Remove a client",
		Args:  cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			return flags.withClients(func(store *authstore.Store) error {
				err := recorded(flags.adminFlags, "removal of client "+flags.id, func() error {
					return store.RemoveClient(ctx, flags.id)
				})
				if err != nil {
					return ofClient(flags.id, err)
				}
				return a.print("removed client " + flags.id + "\n")
			})
		}),
	})
}

func (a *app) clientRotateSecret(flags *clientFlags) *cobra.Command {
	return withJSON(flags.named(&cobra.Command{
		Use:   "rotate-secret --id ID",
		Short: "Replace the secret of a client",
		Long:  `Generate a new secret for a client and print it once. The old secret is invalid immediately.`,
		Args:  cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			return flags.withClients(func(store *authstore.Store) error {
				client, before, err := readClient(ctx, store, flags.id)
				if err != nil {
					return err
				}
				if client.SecretHash == "" {
					return fmt.Errorf("client %s has keys, not a secret", flags.id)
				}
				secret := token.NewSecret()
				client.SecretHash = token.HashSecret(secret)
				record, err := client.Record()
				if err != nil {
					return err
				}
				err = recorded(flags.adminFlags, "new secret of client "+flags.id, func() error {
					return store.ReplaceClient(ctx, flags.id, before, record)
				})
				if errors.Is(err, export.ErrConflict) {
					return fmt.Errorf("client %s was changed concurrently: try again", flags.id)
				}
				if err != nil {
					return err
				}
				return a.printRegistered(flags, client, secret)
			})
		}),
	}), flags.adminFlags)
}

func (a *app) clientKeygen() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "keygen --out NAME",
		Short: "Generate a key pair for a client",
		Long: `Generate a P-384 key pair (ES384): NAME.key.json, the private key for the client, and NAME.jwks.json, the
public key set to register. Existing files are not replaced.`,
		Args: cobra.NoArgs,
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

// readClient returns a client and its stored record.
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
