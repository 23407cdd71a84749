import {
  Badge,
  Button,
  Card,
  type CSSVariablesResolver,
  createTheme,
  Modal,
  Table,
  Tooltip,
} from "@mantine/core";

export const theme = createTheme({
  fontFamily:
    "'Inter Variable', system-ui, -apple-system, 'Segoe UI', 'PingFang SC', 'Microsoft YaHei', 'Noto Sans CJK SC', 'WenQuanYi Micro Hei', sans-serif",
  fontFamilyMonospace: "'JetBrains Mono Variable', ui-monospace, 'SF Mono', Menlo, monospace",
  primaryColor: "sluice",
  primaryShade: { light: 7, dark: 7 },
  defaultRadius: "md",
  cursorType: "pointer",
  focusRing: "auto",
  colors: {
    sluice: [
      "#eef4ff",
      "#dbe7fd",
      "#b9d0fb",
      "#8fb3f7",
      "#6695f1",
      "#467eea",
      "#3370e2",
      "#2862cc",
      "#2155b3",
      "#184693",
    ],
    dark: [
      "#e3e6ea",
      "#b6bcc5",
      "#9098a3",
      "#6b737f",
      "#363c45",
      "#272c34",
      "#1c2027",
      "#14171d",
      "#0f1216",
      "#0a0c0f",
    ],
    gray: [
      "#f8f9fa",
      "#f2f3f5",
      "#e8eaed",
      "#dcdfe3",
      "#c4c9d0",
      "#9aa1ab",
      "#626a75",
      "#4c535d",
      "#343a42",
      "#1c2026",
    ],
  },
  headings: {
    fontWeight: "600",
    sizes: {
      h1: { fontSize: "1.375rem", lineHeight: "1.3" },
      h2: { fontSize: "0.9375rem", lineHeight: "1.4" },
    },
  },
  components: {
    Card: Card.extend({ defaultProps: { withBorder: true, padding: "lg", radius: "lg" } }),
    Button: Button.extend({ defaultProps: { size: "sm" } }),
    Badge: Badge.extend({ defaultProps: { tt: "none", fw: 500, radius: "sm" } }),
    Modal: Modal.extend({
      defaultProps: {
        centered: true,
        radius: "lg",
        // Its <header> would be a second banner of the page.
        attributes: { header: { role: "presentation" } },
      },
    }),
    Tooltip: Tooltip.extend({ defaultProps: { openDelay: 300 } }),
    Table: Table.extend({ defaultProps: { verticalSpacing: "sm", horizontalSpacing: "md" } }),
  },
});

export const resolver: CSSVariablesResolver = () => ({
  variables: {},
  light: {
    "--mantine-color-body": "#ffffff",
    "--mantine-color-dimmed": "#626a75",
    "--sluice-ground": "#fafbfc",
    "--mantine-color-default-border": "#e4e7eb",
    "--mantine-color-placeholder": "#6b737f",
  },
  dark: {
    "--mantine-color-body": "#14171d",
    "--mantine-color-dimmed": "#9aa2ad",
    "--sluice-ground": "#0f1216",
    "--mantine-color-default-border": "#262b33",
    "--mantine-color-placeholder": "#9098a3",
  },
});
