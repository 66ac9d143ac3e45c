package command

import (
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

// clientFlags are those of the commands about registered clients.
type clientFlags struct {
	*adminFlags
	redis, id string
}

func (a *app) client(admin *adminFlags) *cobra.Command {
	flags := clientFlags{adminFlags: admin}
	cmd := family("client", "Look after the clients of the token service",
		`Client looks after the clients that are registered with the token service (docs/auth.md). The commands talk to Redis:
--redis, or the variable SLUICE_REDIS_URL or, for a file that holds it, SLUICE_REDIS_URL_FILE. A change counts for the
next token; tokens that a client holds are good for up to five minutes more. Clients in the token service's own file are
not among them; where the file has a client of the same id, the file counts.`,
		a.clientRegister(&flags), a.clientList(&flags), a.clientShow(&flags), a.clientRemove(&flags),
		a.clientRotateSecret(&flags), a.clientKeygen())
	cmd.PersistentFlags().StringVar(&flags.redis, "redis", "", "URL of Redis; default: the variable SLUICE_REDIS_URL")
	return cmd
}

func (f *clientFlags) named(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&f.id, "id", "", "the client's client_id")
	require(cmd, "id")
	return cmd
}

// withClients runs the work on the clients in Redis.
func (f *clientFlags) withClients(work func(store *authstore.Store) error) (err error) {
	url, err := urlOf(f.redis, "--redis", "SLUICE_REDIS_URL", "Redis")
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

// clientOutput is a client as JSON. Of a secret it says only that there is one.
type clientOutput struct {
	ID      string   `json:"id"`
	Method  string   `json:"method"` // private_key_jwt or client_secret_basic
	JWKSURL string   `json:"jwks_url,omitempty"`
	KIDs    []string `json:"kids,omitempty"` // of the keys that are registered themselves
	Scope   string   `json:"scope"`
	Secret  string   `json:"secret,omitempty"` // only when it was made just now
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
	cmd := askJSON(flags.named(&cobra.Command{
		Use:   "register --id ID --scope SCOPES (--jwks-file FILE | --jwks-url URL | --secret)",
		Short: "Register a client",
		Long: `Register registers a client: with its key set, in a file or at a URL of the client's own, or with a secret. A
secret is made here and printed once; the token service takes it only with SLUICE_AUTH_CLIENT_SECRET=true. The scopes
are those of the context system/ that read; a token never has more than these.`,
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
					return fmt.Errorf("client %s is registered already: remove it first", client.ID)
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
	f.BoolVar(&withSecret, "secret", false, "make a secret for HTTP Basic")
	f.StringVar(&client.Scope, "scope", "", "scopes, separated by blanks, as 'system/*.rs'")
	require(cmd, "scope")
	cmd.MarkFlagsMutuallyExclusive("jwks-file", "jwks-url", "secret")
	cmd.MarkFlagsOneRequired("jwks-file", "jwks-url", "secret")
	return cmd
}

// printRegistered tells what is registered, and the secret that was made for it: nobody can read it again.
func (a *app) printRegistered(flags *clientFlags, client token.Client, secret string) error {
	output := clientJSON(client)
	output.Secret = secret
	if flags.json {
		return a.printJSON(output)
	}
	if secret != "" {
		a.say("The secret of %s follows. It is kept nowhere: whoever loses it needs another one.\n", client.ID)
		return a.print(secret + "\n")
	}
	return a.print("registered client " + client.ID + "\n")
}

func (a *app) clientList(flags *clientFlags) *cobra.Command {
	return askJSON(&cobra.Command{
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
	return askJSON(flags.named(&cobra.Command{
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
		Short: "Remove a client: it gets no further token",
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
	return askJSON(flags.named(&cobra.Command{
		Use:   "rotate-secret --id ID",
		Short: "Give a client another secret, in place of the one that it has",
		Long:  `Rotate-secret makes another secret for a client and prints it once. The one before is good for nothing at once.`,
		Args:  cobra.NoArgs,
		RunE: a.run(func(ctx context.Context, _ []string) error {
			return flags.withClients(func(store *authstore.Store) error {
				client, before, err := readClient(ctx, store, flags.id)
				if err != nil {
					return err
				}
				if client.SecretHash == "" {
					return fmt.Errorf("client %s has keys and no secret", flags.id)
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
					return fmt.Errorf("client %s was changed by somebody else at the same time", flags.id)
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
		Short: "Make a key pair for a client",
		Long: `Keygen makes a key pair on P-384 (ES384): NAME.key.json, the private key, which stays with the client, and
NAME.jwks.json, the public key set, to be registered. It replaces no file and talks to no server.`,
		Args: cobra.NoArgs,
		RunE: a.run(func(context.Context, []string) error {
			private, public, err := token.NewClientKey()
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
	cmd.Flags().StringVar(&out, "out", "", "path that both files begin with")
	require(cmd, "out")
	return cmd
}

// readClient returns a client and its record as it is stored.
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
