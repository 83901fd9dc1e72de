// What dashboards/site uses of Apache ECharts; see README.md for the command that makes echarts.min.js of it.
import * as echarts from "echarts/core";
import { CustomChart, LineChart, ScatterChart, BarChart } from "echarts/charts";
import {
  AriaComponent, AxisPointerComponent, DataZoomComponent, GridComponent, LegendScrollComponent, MarkAreaComponent,
  MarkLineComponent, MarkPointComponent, TooltipComponent,
} from "echarts/components";
import { CanvasRenderer, SVGRenderer } from "echarts/renderers";

echarts.use([
  CustomChart, LineChart, ScatterChart, BarChart, AriaComponent, AxisPointerComponent, DataZoomComponent, GridComponent,
  LegendScrollComponent, MarkAreaComponent, MarkLineComponent, MarkPointComponent, TooltipComponent, CanvasRenderer,
  SVGRenderer,
]);
window.echarts = echarts;
