package command

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/sluice-fhir/sluice/pkg/directory"
	"github.com/sluice-fhir/sluice/pkg/directory/pgdir"
	"github.com/sluice-fhir/sluice/pkg/fhir"
	"github.com/sluice-fhir/sluice/pkg/platform/plural"
)

const membersHelp = `

PATIENT is the id of a patient; --file has more, one per line ("-" is standard input). If any id is malformed, nothing
is changed.`

const strictHelp = ` Ids that are not in the store are reported; with --strict they are an error, and nothing is
changed.`

const irrevocableHelp = `

The command asks for confirmation unless --yes is given. The change is recorded in the audit log first: --audit-log or
SLUICE_AUDIT_LOG must name a file that no service writes, or stdout.`

func (a *app) group() *cobra.Command {
	return parent("group", "Manage groups and their members",
		`Manage the groups of the database: sets of patients that can be exported. A load replaces the groups in its files,
including changes made with these commands.`,
		a.groupList(), a.groupShow(), a.groupDescribe(),
		a.onDirectory(a.withJSON(a.withYes(&cobra.Command{
			Use:   "delete GROUP",
			Short: "Delete a group and its membership",
			Long:  "Delete a group and its membership." + irrevocableHelp,
			Args:  cobra.MatchAll(exactly("GROUP"), aGroup),
		})), func(ctx context.Context, groups *pgdir.Groups, _ *pgdir.Access, args []string) error {
			group, err := groups.Show(ctx, args[0])
			if err != nil {
				return named(args[0], err)
			}
			question := fmt.Sprintf("Delete group %s with %s?", args[0], plural.Of(group.Members, "member"))
			return a.irrevocable(question, "deletion of Group/"+args[0], func() (string, error) {
				done := a.result("deleted group "+args[0]+"\n", groupChange{args[0], group.Members})
				return done, named(args[0], groups.Delete(ctx, args[0]))
			})
		}),
		a.groupMembers("create", "Create a group", `Create a group that can be exported. It may have no members.`,
			"created group %s with %s\n", (*pgdir.Groups).Create),
		a.groupMembers("add", "Add members to a group",
			`Add patients to a group from now on, without an end date. Existing members are not changed.`,
			"group %s: added %s\n", (*pgdir.Groups).Add),
		a.groupMembers("remove", "Remove members from a group",
			`Remove patients from a group, together with their joining dates. Patients who are not in the group are ignored.`,
			"group %s: removed %s\n", (*pgdir.Groups).Remove),
	)
}

func aGroup(_ *cobra.Command, args []string) error {
	if !fhir.IsID(args[0]) {
		return usage("GROUP is not a FHIR id")
	}
	return nil
}

func groupRows(groups ...pgdir.Group) []row {
	rows := []row{{"group", "current members", "all members", "exportable", "last updated", "name"}}
	for _, g := range groups {
		updated, name := "-", "-"
		if g.LastUpdated != nil {
			updated = instant(*g.LastUpdated)
		}
		if g.Name != nil {
			name = *g.Name
		}
		rows = append(rows, row{g.ID, g.Current, g.Members, yesNo(g.Exportable), updated, name})
	}
	return rows
}

func yesNo(yes bool) string {
	if yes {
		return "yes"
	}
	return "no"
}

func (a *app) groupList() *cobra.Command {
	return a.withJSON(a.onDirectory(&cobra.Command{
		Use:   "list",
		Short: "List the groups",
		Long: `List every group: the number of its current members, the number of all its members (with the inactive ones
and those whose period does not cover the present), whether it can be exported, and its meta.lastUpdated. The members of
member groups are not counted.`,
	}, func(ctx context.Context, groups *pgdir.Groups, _ *pgdir.Access, _ []string) error {
		list, err := groups.List(ctx)
		if err != nil {
			return err
		}
		return a.show(list, groupRows(list...))
	}))
}

func (a *app) groupShow() *cobra.Command {
	var members bool
	cmd := a.withJSON(a.onDirectory(&cobra.Command{
		Use:   "show GROUP",
		Short: "Show a group",
		Long: `Show a group as list does, the groups that are members of it, and by reason the number of current members that are
not patients of this store. With --members, print only the ids of the current members, one per line, without those of
member groups; with --members --json, all members of the group and when they joined.`,
		Example: `  sluice admin group show diabetes
  sluice admin group show diabetes --members`,
		Args: cobra.MatchAll(exactly("GROUP"), aGroup),
	}, func(ctx context.Context, groups *pgdir.Groups, _ *pgdir.Access, args []string) error {
		group, err := groups.Show(ctx, args[0])
		if err != nil {
			return named(args[0], err)
		}
		if members && !a.flags.json {
			return a.printMembers(ctx, groups, group.ID)
		}
		output := struct {
			pgdir.Group
			Roll []pgdir.Member `json:"roll,omitempty"`
		}{Group: group}
		if members {
			err = groups.Roll(ctx, group.ID, func(m pgdir.Member) error {
				m.Joined = m.Joined.UTC()
				output.Roll = append(output.Roll, m)
				return nil
			})
		}
		if err != nil {
			return err
		}
		nested := []row{{"member group", "current member", "exportable"}}
		for _, g := range group.Groups {
			nested = append(nested, row{g.ID, yesNo(g.Current), yesNo(g.Exportable)})
		}
		left := []row{{"left out because", "current members"}}
		for _, l := range group.LeftOut {
			left = append(left, row{l.Reason.Text(), l.Count})
		}
		identifiers := []row{{"identifier", "system"}}
		for _, i := range group.Identifiers {
			identifiers = append(identifiers, row{i.Value, i.System})
		}
		return a.show(output, groupRows(group), identifiers, nested, left)
	}))
	cmd.Flags().BoolVar(&members, "members", false, "print the ids of the patients")
	return cmd
}

func (a *app) groupDescribe() *cobra.Command {
	var name string
	var identifiers []string
	cmd := a.onDirectory(a.withJSON(&cobra.Command{
		Use:   "describe GROUP [--name TEXT] [--identifier SYSTEM|VALUE ...]",
		Short: "Set a group's name and identifiers",
		Long: `Set the name and the identifiers of a group, by which clients find it, replacing all existing ones. An identifier
is SYSTEM|VALUE, or VALUE without a system.`,
		Example: `  sluice admin group describe diabetes --name 'Diabetes registry' --identifier 'https://example.org/ids|d1'`,
		Args:    cobra.MatchAll(exactly("GROUP"), aGroup),
	}), func(ctx context.Context, groups *pgdir.Groups, _ *pgdir.Access, args []string) error {
		details := directory.Details{ID: args[0], Name: name}
		for i, text := range identifiers {
			system, value, found := strings.Cut(text, "|")
			if !found {
				system, value = "", text
			}
			if value == "" {
				return usage("--identifier number %d has no value", i+1)
			}
			details.Identifiers = append(details.Identifiers, directory.Identifier{System: system, Value: value})
		}
		return a.recorded("description of Group/"+args[0], func() (string, error) {
			done := a.result("described group "+args[0]+"\n", groupChange{Group: args[0]})
			return done, named(args[0], groups.Describe(ctx, details))
		})
	})
	cmd.Flags().StringVar(&name, "name", "", "the group's name")
	cmd.Flags().StringArrayVar(&identifiers, "identifier", nil, "an identifier of the group, SYSTEM|VALUE; may be repeated")
	return cmd
}

func (a *app) printMembers(ctx context.Context, groups *pgdir.Groups, groupID string) error {
	w := bufio.NewWriter(a.stdout)
	err := groups.Roll(ctx, groupID, func(m pgdir.Member) error {
		if !m.Current {
			return nil
		}
		if _, err := w.WriteString(m.Patient + "\n"); err != nil {
			return fmt.Errorf("write the result: %w", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("write the result: %w", err)
	}
	return nil
}

// groupMembers returns a command with a group and patients as arguments.
func (a *app) groupMembers(
	name, short, long, done string, change func(*pgdir.Groups, context.Context, string, pgdir.Patients) (int64, error),
) *cobra.Command {
	var file string
	var strict bool
	help := membersHelp
	if name != "remove" {
		help += strictHelp
	}
	cmd := a.onDirectory(&cobra.Command{
		Use:     name + " GROUP [PATIENT...]",
		Short:   short,
		Long:    long + help,
		Example: fmt.Sprintf("  sluice admin group %[1]s diabetes p1 p2\n  sluice admin group %[1]s diabetes --file ids", name),
		Args: cobra.MatchAll(atLeast("GROUP"), aGroup, func(_ *cobra.Command, args []string) error {
			if len(args) == 1 && file == "" && name != "create" {
				return usage("missing patients: pass PATIENT arguments or --file")
			}
			for i, id := range args[1:] {
				if !fhir.IsID(id) {
					return usage("PATIENT number %d is not a FHIR id", i+1)
				}
			}
			return nil
		}),
	}, func(ctx context.Context, groups *pgdir.Groups, _ *pgdir.Access, args []string) error {
		patients := prepend(args[1:], nil)
		if file != "" {
			patients = prepend(args[1:], validated(idsIn(file), directory.CheckID, "the ids in "+place(file)))
		}
		return a.recorded(name+" of Group/"+args[0], func() (string, error) {
			changed, err := change(groups.Checked(a.reportMissing(strict)), ctx, args[0], patients)
			text := fmt.Sprintf(done, args[0], plural.Of(changed, "member"))
			return a.result(text, groupChange{args[0], changed}), named(args[0], err)
		})
	})
	if name != "remove" {
		withStrict(cmd, &strict)
	}
	a.withJSON(cmd)
	cmd.Flags().StringVar(&file, "file", "", `file of patient ids, one per line; "-" is standard input`)
	return cmd
}

func withStrict(cmd *cobra.Command, strict *bool) {
	cmd.Flags().BoolVar(strict, "strict", false, "fail if an id is not in the store")
}

// reportMissing returns a check that reports ids that the database does not have. They are an error if strict.
func (a *app) reportMissing(strict bool) func(pgdir.Missing) error {
	return func(m pgdir.Missing) error {
		var texts []string
		add := func(n, of int64, noun, place string) {
			verb := "are"
			if n == 1 {
				verb = "is"
			}
			if n > 0 {
				texts = append(texts, fmt.Sprintf("%d of %s %s not in the %s", n, plural.Of(of, noun), verb, place))
			}
		}
		add(m.Groups, m.OfGroups, "group", "database")
		add(m.Patients, m.OfPatients, "patient", "store")
		if strict && m.Unchecked {
			texts = append(texts, "patients cannot be checked: the database's role cannot read the clinical data")
		}
		if strict && len(texts) > 0 {
			return fmt.Errorf("%s (--strict)", strings.Join(texts, "; "))
		}
		for _, text := range texts {
			a.say("warning: %s\n", text)
		}
		return nil
	}
}

// withYes adds the flag of a command that asks for confirmation.
func (a *app) withYes(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().BoolVar(&a.flags.yes, "yes", false, "do not ask for confirmation")
	return cmd
}

// irrevocable asks for confirmation of a change, unless the question is empty, and makes it. The change needs an audit log.
func (a *app) irrevocable(question, what string, step func() (done string, err error)) error {
	if orVariable(a.flags.audit, auditVariable) == "" {
		return usage("--audit-log or SLUICE_AUDIT_LOG is required: a file, or stdout")
	}
	if question != "" {
		if err := a.confirm(question); err != nil {
			return err
		}
	}
	return a.recorded(what, step)
}

// result returns the output of a change: the text, or with --json the value.
func (a *app) result(text string, value any) string {
	if !a.flags.json {
		return text
	}
	data, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		panic(err) // the values are structs of numbers and text
	}
	return string(data) + "\n"
}

// groupChange is the output of a change of a group.
type groupChange struct {
	Group   string `json:"group"`
	Changed int64  `json:"changed"` // number of members that were added or removed
}

// named adds the group's id to errors without it.
func named(groupID string, err error) error {
	if errors.Is(err, directory.ErrNoGroup) || errors.Is(err, pgdir.ErrGroupExists) {
		return fmt.Errorf("%s: %w", groupID, err)
	}
	return err
}
