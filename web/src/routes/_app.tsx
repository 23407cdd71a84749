import {
  ActionIcon,
  Alert,
  AppShell,
  Badge,
  Burger,
  Group,
  Menu,
  Text,
  useMantineColorScheme,
} from "@mantine/core";
import { useDisclosure } from "@mantine/hooks";
import {
  IconActivity,
  IconBook,
  IconDeviceDesktop,
  IconKey,
  IconLanguage,
  IconLayoutDashboard,
  IconListDetails,
  IconLogout,
  IconMoon,
  IconPlayerPlay,
  IconServer,
  IconStack2,
  IconSun,
  IconUserCircle,
  IconUsers,
  IconWebhook,
} from "@tabler/icons-react";
import { useQuery, useQueryClient } from "@tanstack/react-query";
import { createFileRoute, Link, Outlet, redirect, useNavigate } from "@tanstack/react-router";
import { useTranslation } from "react-i18next";
import { ApiError, api } from "@/api/client";
import { healthQuery, sessionQuery } from "@/api/queries";
import { Logo } from "@/components/logo";
import { choose, type Language, languages } from "@/i18n";
import { Connection, useNews } from "@/lib/live";
import { useSession } from "@/lib/session";

export const Route = createFileRoute("/_app")({
  beforeLoad: async ({ context, location }) => {
    try {
      await context.queryClient.ensureQueryData(sessionQuery);
    } catch (error) {
      if (error instanceof ApiError && error.status === 401) {
        throw redirect({ to: "/sign-in", search: location.pathname === "/" ? {} : { to: location.href } });
      }
      throw error;
    }
  },
  errorComponent: Unreachable,
  component: Shell,
});

/** The API was away when the page was opened. */
function Unreachable() {
  const { t } = useTranslation();
  return (
    <Alert color="red" m="xl" title={t("down.title")} role="alert">
      <Text size="sm">{t("down.text")}</Text>
      <Text component="a" href={window.location.href} size="sm" className="text-link">
        {t("common.retry")}
      </Text>
    </Alert>
  );
}

function Shell() {
  const { t } = useTranslation();
  const [opened, { toggle, close }] = useDisclosure();
  const state = useNews();
  const { may } = useSession();
  const links = [
    { to: "/", icon: IconLayoutDashboard, label: t("nav.overview"), exact: true },
    { to: "/jobs", icon: IconListDetails, label: t("nav.jobs") },
    { to: "/batches", icon: IconStack2, label: t("nav.batches") },
    { to: "/playground", icon: IconPlayerPlay, label: t("nav.playground") },
    { to: "/accounts", icon: IconUsers, label: t("nav.accounts") },
    { to: "/workers", icon: IconServer, label: t("nav.workers") },
    { to: "/webhooks", icon: IconWebhook, label: t("nav.webhooks") },
    ...(may("admin") ? [{ to: "/keys", icon: IconKey, label: t("nav.keys") }] : []),
  ];
  return (
    <Connection.Provider value={state}>
      <a className="skip" href="#content">
        {t("nav.skip")}
      </a>
      <AppShell
        header={{ height: 56 }}
        navbar={{ width: 220, breakpoint: "sm", collapsed: { mobile: !opened } }}
        padding={{ base: "md", md: "xl" }}
      >
        <AppShell.Header className="shell-head">
          <Group h="100%" px="md" justify="space-between" wrap="nowrap">
            <Group gap="sm" wrap="nowrap">
              <Burger
                opened={opened}
                onClick={toggle}
                hiddenFrom="sm"
                size="sm"
                aria-label={t("nav.menu")}
                aria-expanded={opened}
              />
              <Link to="/" className="row-link">
                <Logo />
              </Link>
            </Group>
            <Group gap={4} wrap="nowrap">
              {state === "up" && (
                <Badge
                  variant="transparent"
                  color="gray"
                  c="dimmed"
                  leftSection={<IconActivity size={14} />}
                  visibleFrom="xs"
                >
                  {t("nav.live")}
                </Badge>
              )}
              <Settings />
            </Group>
          </Group>
        </AppShell.Header>
        <AppShell.Navbar p="sm" className="shell-nav" aria-label={t("nav.main")}>
          {links.map(({ to, icon: Icon, label, exact }) => (
            <Link
              key={to}
              to={to}
              className="nav-link"
              activeOptions={{ exact: exact ?? false, includeSearch: false }}
              onClick={close}
            >
              <Icon size={18} stroke={1.6} aria-hidden />
              {label}
            </Link>
          ))}
          <a href="/docs" className="nav-link" style={{ marginTop: "auto" }}>
            <IconBook size={18} stroke={1.6} aria-hidden />
            {t("nav.docs")}
          </a>
        </AppShell.Navbar>
        <AppShell.Main id="content" tabIndex={-1} maw={1440} style={{ outline: "none" }}>
          <Trouble down={state === "down"} />
          <div className={state === "down" ? "stale" : undefined}>
            <Outlet />
          </div>
        </AppShell.Main>
      </AppShell>
    </Connection.Provider>
  );
}

/** What is down, if anything is. */
function Trouble({ down }: { down: boolean }) {
  const { t } = useTranslation();
  const { data: health } = useQuery(healthQuery);
  if (down) {
    return (
      <Alert color="red" mb="lg" title={t("down.title")} role="alert">
        <Text size="sm">{t("down.text")}</Text>
      </Alert>
    );
  }
  return Object.entries(health?.planes ?? {})
    .filter(([, plane]) => !plane.up)
    .map(([plane, { kind }]) => (
      <Alert key={plane} color="yellow" mb="lg" title={t("down.plane", { plane, kind })} role="status">
        <Text size="sm">{t("down.planeText")}</Text>
      </Alert>
    ));
}

function Settings() {
  const { t, i18n } = useTranslation();
  const { client, scope } = useSession();
  const { colorScheme, setColorScheme } = useMantineColorScheme();
  const queries = useQueryClient();
  const navigate = useNavigate();
  const signOut = async () => {
    await api.DELETE("/api/session");
    queries.clear();
    await navigate({ to: "/sign-in", search: {} });
  };
  const schemes = [
    ["light", IconSun],
    ["dark", IconMoon],
    ["auto", IconDeviceDesktop],
  ] as const;
  const current = (is: boolean) =>
    is ? { bg: "var(--mantine-color-default-hover)", "aria-current": true as const } : {};
  return (
    <Menu position="bottom-end" width={220}>
      <Menu.Target>
        <ActionIcon variant="subtle" color="gray" size="lg" aria-label={t("nav.you", { client })}>
          <IconUserCircle size={22} stroke={1.6} />
        </ActionIcon>
      </Menu.Target>
      <Menu.Dropdown>
        <Menu.Label>
          {t("nav.you", { client })} · {t(`scope.${scope}`)}
        </Menu.Label>
        <Menu.Divider />
        <Menu.Label>{t("nav.language")}</Menu.Label>
        {(Object.keys(languages) as Language[]).map((language) => (
          <Menu.Item
            key={language}
            lang={language}
            leftSection={<IconLanguage size={16} />}
            {...current(i18n.language === language)}
            onClick={() => choose(language)}
          >
            {languages[language]}
          </Menu.Item>
        ))}
        <Menu.Label>{t("nav.scheme")}</Menu.Label>
        {schemes.map(([scheme, Icon]) => (
          <Menu.Item
            key={scheme}
            leftSection={<Icon size={16} />}
            {...current(colorScheme === scheme)}
            onClick={() => setColorScheme(scheme)}
          >
            {t(`nav.${scheme}`)}
          </Menu.Item>
        ))}
        <Menu.Divider />
        <Menu.Item leftSection={<IconLogout size={16} />} onClick={signOut}>
          {t("nav.signOut")}
        </Menu.Item>
      </Menu.Dropdown>
    </Menu>
  );
}
